"""Launchers of the CPU's kernels in csrc/, one for each op that has one."""
