"""What an operator sees of a host: it reads the engine, and changes nothing that stays."""
