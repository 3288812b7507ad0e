"""``acefast bench``: how long a song takes, stage by stage, on the machine at hand.

command      the command line: cases in, a report out; nothing else prints
engines      the modes: eager, compile, fused, graph
procedure    warm up, repeat, take percentiles; clocks of a CPU and of a GPU
cases        one case measured: a row of the report
predictions  what was predicted for a case, put beside it
environment  the machine, as far as it decides about speed
report       the JSON, its schema, and the Markdown table
plot         stages stacked, predicted beside measured
kernel_times each kernel alone, for the calibration
"""
