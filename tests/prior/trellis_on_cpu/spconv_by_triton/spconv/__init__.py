"""`spconv_triton`, whose modules have the names and arguments of spconv's."""
