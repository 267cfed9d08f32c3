"""CNI: what a runtime asks by the CNI executable."""
