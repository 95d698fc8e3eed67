"""The paper's figures and tables, each by one command: it trains a grid of networks, evaluates them and reports.

A cell is one network of the grid.

panels.py        networks, data sets and sigmas of the paper; presets for the size of an experiment
as_published.py  the published setting and ours
variants.py      the methods that an experiment compares, by the name of their line
tuning.py        options that a search chooses, on training seeds of its own
grid.py          the cells of an experiment: panel, method, sigma, training seed
store.py         one JSON file per cell, shared by several processes
work.py          trains and measures one cell
estimate.py      the time that a grid takes on this machine
run.py           computes the cells of a grid
report.py        tables, plots and a page from the finished cells
"""
