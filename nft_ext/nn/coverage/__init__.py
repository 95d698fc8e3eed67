"""The account of a model's weights: which matrices sit on crossbars, which are digital, and why."""
