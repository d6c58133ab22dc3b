"""Stage `prior`: a complete head mesh, aligned with canonical space."""
