"""The paper's figures and tables, each by one command: a grid of trainings, their Monte Carlo evaluation, and a report.

panels.py    networks, data sets and sigmas of the paper; how large a run is (presets)
grid.py      which cells an experiment needs: panel, method, sigma, training seed
store.py     one JSON file a cell, never computed twice, shared by several processes
work.py      trains and measures one cell
estimate.py  what a grid will cost on this machine
run.py       works through a grid
report.py    tables, plots and a page from the finished cells
"""
