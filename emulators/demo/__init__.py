"""The main job from end to end, on emulated units: `qkdhw demo`.

command.py   the command line
staging.py   what an installer does once: stores with a start key, tokens, a small CA, two site files
stage.py     starts the emulated link and the two site processes, follows what they tell
summary.py   the table and the JSON object
report.py    the self-contained HTML page with plots
"""
