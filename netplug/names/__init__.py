"""Records as DNS zones, who may ask for what, and the name server's listeners."""
