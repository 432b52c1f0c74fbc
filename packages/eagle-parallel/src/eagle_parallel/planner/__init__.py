"""Cost model of context parallelism: which layout a pack should have, and which mesh a run should have on how many GPUs.

Predicts seconds and bytes from lengths, model shape and topology; nothing is executed and torch is not used. What its rates were
measured on, and its error where there is something to compare with, is in `calibration`.
"""

from eagle_parallel.planner.attention import AttentionTime, Volume, attention_time, volume
from eagle_parallel.planner.calibration import Comparison, comparisons
from eagle_parallel.planner.choose import choose_layout
from eagle_parallel.planner.hardware import H200, KERNELS, Cluster, Device, Kernel, Link
from eagle_parallel.planner.load import RankLoad, rank_load
from eagle_parallel.planner.memory import PeakMemory, peak_memory
from eagle_parallel.planner.model import MODELS, TransformerShape, load_model
from eagle_parallel.planner.run import Choice, Run
from eagle_parallel.planner.search import Prediction, explain, predict, search
from eagle_parallel.planner.step import StepTime, step_time

__all__ = [
    "H200",
    "KERNELS",
    "MODELS",
    "AttentionTime",
    "Choice",
    "Cluster",
    "Comparison",
    "Device",
    "Kernel",
    "Link",
    "PeakMemory",
    "Prediction",
    "RankLoad",
    "Run",
    "StepTime",
    "TransformerShape",
    "Volume",
    "attention_time",
    "choose_layout",
    "comparisons",
    "explain",
    "load_model",
    "peak_memory",
    "predict",
    "rank_load",
    "search",
    "step_time",
    "volume",
]
