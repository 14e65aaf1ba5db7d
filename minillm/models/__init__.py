"""Loading a student and a frozen teacher from stock transformers checkpoints."""

from minillm.common.lazy import lazily

_MODULES = {
    "architecture": ("Architecture", "split_problems"),
    "checkpoint": ("Attention", "Checkpoint", "Dtype", "FromScratch", "choose_dtype", "device_of"),
    "head": ("Head",),
    "kv_cache": ("RollingCache",),
    "language_model": ("LanguageModel",),
    "lora": ("Lora",),
    "loaded": ("Pair", "Teachers", "pair_of", "solo"),
    "pair": ("OWN_TEACHERS", "ModelPair", "PrunedTeacher"),
    "prune": ("keep_layers",),
}
__getattr__ = lazily(__name__, _MODULES)
__all__ = [name for names in _MODULES.values() for name in names]
