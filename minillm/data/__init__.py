"""Records to ids: prompts, references and the pre-training corpus."""

from minillm.common.lazy import lazily

_MODULES = {
    "choices": ("ChoiceTask", "read_choices"),
    "corpus": ("Corpus", "build_corpus"),
    "documents": ("Documents", "read_documents"),
    "order": ("rows_at",),
    "prompts": ("PromptSet", "build_prompts"),
    "records": ("Record", "read_records"),
    "sources": ("Sources", "training_keys"),
}
__getattr__ = lazily(__name__, _MODULES)
__all__ = [name for names in _MODULES.values() for name in names]
