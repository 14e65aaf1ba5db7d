"""Records to ids: prompts, references and the pre-training corpus."""

from minillm.data.choices import ChoiceTask, read_choices
from minillm.data.corpus import Corpus, build_corpus
from minillm.data.documents import Documents, read_documents
from minillm.data.order import rows_at
from minillm.data.prompts import PromptSet, build_prompts
from minillm.data.records import Record, read_records
from minillm.data.sources import Sources, training_keys

__all__ = [
    "ChoiceTask",
    "Corpus",
    "Documents",
    "PromptSet",
    "Record",
    "Sources",
    "build_corpus",
    "build_prompts",
    "read_choices",
    "read_documents",
    "read_records",
    "rows_at",
    "training_keys",
]
