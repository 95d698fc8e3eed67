"""The figures of README and docs beside the files they come from: `python -m bench.claims`.

One module per page holds its entries (`pages.py` names them); `page.py` compares; `timings.py` and `reports.py` read
result files.
"""
