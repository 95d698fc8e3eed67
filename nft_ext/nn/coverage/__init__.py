"""The coverage of a model: which matrices sit on crossbars, which are digital, and why."""
