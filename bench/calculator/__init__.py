"""Work and time of a song of ACE-Step 1.5 by counting: no GPU, nothing measured.

    from bench.calculator.song import Job, latency
    from bench.calculator.gpus import DEVICES

    latency(Job("turbo", 240), DEVICES["a100-40"], "target")  # seconds: prep, dit, decode, finish, total

Every kernel is counted in flops and bytes, ``work.py``, from the models' sizes, ``transformer.py`` and ``decoder.py``,
once as the fused plan and once as plain PyTorch launches it. Three times come of it:

    floor   the fused plan at a GPU's peaks: nothing lost, launches free, activations within half of L2 never in memory
    target  the same plan in whole tiles and waves, at judged fractions of the peaks, launches inside CUDA graphs
    eager   plain PyTorch: its kernels and their traffic, or its host time, whichever is longer

All judged constants are in ``work.TUNING`` and in acefast.sim.roofline.JUDGED; measurements should replace them. What
the kernels of this repository do instead of the plan's is in ``bench/predict.py``.
"""
