"""Several processes and interruptions: who evaluates which chips, and the journal that keeps finished ones."""
