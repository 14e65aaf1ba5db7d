"""Loading a student and a frozen teacher from stock transformers checkpoints."""

from minillm.models.architecture import Architecture, split_problems
from minillm.models.checkpoint import Attention, Checkpoint, Dtype, choose_dtype, device_of
from minillm.models.head import Head
from minillm.models.kv_cache import RollingCache
from minillm.models.language_model import LanguageModel
from minillm.models.lora import Lora
from minillm.models.pair import ModelPair, Pair, PrunedTeacher, pair_of, solo
from minillm.models.prune import keep_layers
from minillm.models.scratch import FromScratch

__all__ = [
    "Architecture",
    "Attention",
    "Checkpoint",
    "Dtype",
    "FromScratch",
    "Head",
    "LanguageModel",
    "Lora",
    "ModelPair",
    "Pair",
    "PrunedTeacher",
    "RollingCache",
    "choose_dtype",
    "device_of",
    "keep_layers",
    "pair_of",
    "solo",
    "split_problems",
]
