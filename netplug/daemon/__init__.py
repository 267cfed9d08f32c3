"""The daemon: its composition, its life, its locks; and CNI without a daemon."""
