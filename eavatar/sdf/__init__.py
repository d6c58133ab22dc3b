"""Stage `sdf`: signed distance field, deformation and colour on a tetrahedral grid."""
