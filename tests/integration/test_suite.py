"""The whole evaluation on tiny models: its figures by other roads, and models at the edges."""

import shutil
import weakref

import pytest
import torch

import minillm.evaluation.suite.work
from minillm.data import read_records
from minillm.evaluation.answers import answer_prompts, prefix_kl, sample_answers, summarise
from minillm.evaluation.metrics import calibration_figures, exposure_curve, label_probabilities, rouge_l
from minillm.evaluation.suite import run_suite
from minillm.evaluation.zero_shot import label_logprobs, word_tokens
from minillm.models import LanguageModel
from tests.integration.evaluations import BRIEF, SAMPLES, lines, loaded, results
from tests.tiny import make_model, make_tokenizer


@pytest.mark.quick
def test_every_figure_is_there_for_every_row(whole, world, place):
    found = results(whole)
    teacher, one, two = (f"{world}/teacher", f"{place}/one/student", f"{place}/two/student")
    assert (found["suite"], found["teacher"]) == ("paper", teacher)
    assert {source: (each["label"], each["role"]) for source, each in found["models"].items()} == {
        teacher: (f"{world.name}/teacher", "teacher"), one: ("one/student", "student"), two: ("two/student", "student"),
    }  # fmt: skip
    assert next(iter(found["models"])) == teacher and found["models"][one]["parameters"] > 5000
    files = [f"{world}/val.jsonl", f"{world}/train.jsonl"]
    assert list(found["answers"]) == ["plain", "no_repeat_ngram_1"]
    kl = {"reverse_kl", "forward_kl"}
    own = {"length", "truncated", "empty", "rouge_l", "exact_match", *(f"distinct_{n}" for n in (1, 2, 3, 4))}
    for name, decoding in found["answers"].items():
        assert list(decoding) == files
        for file, n in zip(files, (5, 12), strict=True):
            for source, row in decoding[file].items():
                assert row["prompts"] == n and row["figures"]["length"]["n"] == n
                assert row["figures"].keys() == own | (kl if source != teacher and name == "plain" else set())
                assert row["by_length"]["0-5"]["rouge_l"]["n"] == n and row["by_length"]["11+"]["rouge_l"]["n"] == 0
    for file in files:
        assert set(found["reference_loss"][file]) == {teacher, one, two}
        assert set(found["position"][file]) == set(found["exposure"][file]) == {one, two}  # nothing against itself
    assert list(found["calibration"]) == ["sst2"] and set(found["calibration"]["sst2"]) == {teacher, one, two}
    assert "judge" not in found and found["settings"]["content"].keys() == {
        *files,
        teacher,
        one,
        two,
        f"{place}/choices.jsonl",
    }


def test_figures_of_answers_are_those_of_the_prompts_at_once(whole, world, place, checked, tmp_path):
    """No chunks, no units, and the KL by the road of a run's validation."""
    pair, file, source = loaded(world, place), f"{world}/train.jsonl", f"{place}/one/student"
    prompts = checked(tmp_path).sources.evaluation_prompts(read_records(file), pair, "x")
    model, found = LanguageModel(pair.student, pair.n_vocab), results(whole)
    for decoding, size in (("plain", 0), ("no_repeat_ngram_1", 1)):
        for seed in (1, 2):
            answers = answer_prompts(
                model, prompts, pair.tokenizer, seeds=[seed], max_new_tokens=4, batch_size=99, stop_ids=pair.stop_ids,
                teacher=pair.teacher, no_repeat_ngram_size=size,
            )  # fmt: skip
            direct = summarise(answers, [record.references for record in prompts.records])
            figures = found["answers"][decoding][file][source]["figures"]
            assert ("reverse_kl" in figures) == ("forward_kl" in figures) == (size == 0)
            for name in figures.keys() & direct.keys():
                assert figures[name]["per_seed"][str(seed)] == pytest.approx(direct[name], abs=1e-9)
            assert {"rouge_l", "exact_match", "length", "truncated", "distinct_4"} <= figures.keys() & direct.keys()
    rows = [row for row in lines(whole / "answers.jsonl") if (row["model"], row["file"]) == (source, file)]
    assert len(rows) == 2 * 2 * 12 and rows[0]["references"] == list(prompts.records[0].references)
    assert all(row["rouge_l"] == rouge_l(row["answer"], row["references"]) for row in rows)
    assert any(a["answer"] != b["answer"] for a, b in zip(rows[:24], rows[24:], strict=True))  # the decodings differ
    position = found["position"][file][source]["reverse_kl"]
    pooled = sum(mean * alive for mean, alive in zip(position["mean"], position["alive"], strict=True))
    assert pooled == pytest.approx(sum(row["reverse_kl"] for row in rows if row["decoding"] == "plain"), abs=1e-9)
    assert position["alive"][0] == 24


def test_losses_calibration_and_exposure_are_those_of_the_prompts_at_once(whole, world, place, checked, tmp_path):
    pair, suite, source = loaded(world, place, "two"), checked(tmp_path), f"{place}/two/student"
    model, found = LanguageModel(pair.student, pair.n_vocab), results(whole)
    file = f"{world}/train.jsonl"
    prompts = suite.sources.evaluation_prompts(read_records(file), pair, "x")
    total = n_tokens = 0
    for prompt, reference in zip(prompts.prompt_ids, prompts.reference_ids, strict=True):
        labels = torch.tensor([[-100] * len(prompt) + list(reference)])
        said = pair.student(input_ids=torch.tensor([[*prompt, *reference]]), labels=labels)
        total, n_tokens = total + said.loss.item() * len(reference), n_tokens + len(reference)
    assert found["reference_loss"][file][source]["mean"] == pytest.approx(total / n_tokens, abs=1e-6)  # its in float32

    calibration, records = suite.tasks["sst2"]
    asked = suite.sources.evaluation_prompts(records, pair, "x")
    words = word_tokens(calibration.words, pair.tokenizer, pair.n_vocab)
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    direct = calibration_figures(label_probabilities(label_logprobs(model, asked, words)), labels)
    got = found["calibration"]["sst2"][source]
    assert got["ece"] == pytest.approx(direct.ece, abs=1e-9) and got["accuracy"] == direct.accuracy and got["n"] == 7
    assert sum(each["count"] for each in got["bins"]) == 7 and (got["words"], got["dropped"]) == (["red", "blue"], 0)

    draw = dict(seed=10, n_samples=SAMPLES, max_new_tokens=4, batch_size=99, stop_ids=pair.stop_ids)
    samples = [sample_answers(each, prompts, **draw) for each in (model, pair.teacher)]
    curve = exposure_curve(*(prefix_kl(model, pair.teacher, prompts, each) for each in samples))
    got = found["exposure"][file][source]
    assert got["excess"] == pytest.approx(curve.excess, abs=1e-5) and None not in got["excess"]
    assert got["student"]["alive"] == list(curve.student.alive)
    assert got["first_token"] == pytest.approx(curve.first_token)
    ends = zip(got["low"], got["excess"], got["high"], strict=True)
    assert all(low <= value <= high for low, value, high in ends)


def test_tokens_are_written_for_the_first_prompts_of_each_student(whole, world, place):
    rows, answers = lines(whole / "tokens.jsonl"), lines(whole / "answers.jsonl")
    by_key = {(row["model"], row["id"], row["decoding"], row["seed"]): row for row in answers}
    assert len(by_key) == len(answers) == 3 * 17 * 2 * 2 and len(rows) == 2 * 2 * 2  # students, files, prompts
    for row in rows:
        answer = by_key[row["model"], row["id"], "plain", 1]
        assert "".join(row["tokens"]).removesuffix("</s>").strip() == answer["answer"]
        assert len(row["tokens"]) == len(row["log_q"]) == len(row["log_p"]) == answer["n_tokens"]
        assert max(row["log_q"] + row["log_p"]) <= 0 and row["model"] != f"{world}/teacher"


def test_the_teachers_samples_are_made_once(whole):
    kinds = [file.name.split("-")[0] for file in (whole / "units").iterdir()]
    assert kinds.count("samples") == 1 + 2 and kinds.count("exposure") == 2 * (1 + 2)  # chunks of 5 and 12 by 6


def test_one_model_is_loaded_at_a_time_beside_the_teacher(checked, tmp_path, monkeypatch):
    alive, real = weakref.WeakSet(), minillm.evaluation.suite.work.load

    def load(suite, source):
        network, tokenizer = real(suite, source)
        alive.add(network)
        counts.append(len(alive))
        return network, tokenizer

    counts = []
    monkeypatch.setattr(minillm.evaluation.suite.work, "load", load)
    found = run_suite(checked(tmp_path, *BRIEF, "limit=2", "suite.exposure.limit=1"))
    assert {each["student"]["alive"][0] for files in found["exposure"].values() for each in files.values()} == {2}
    assert counts == [1, 2, 2]  # teacher, teacher and one, teacher and two


def bent(network, direction):
    """A GPT-2 that gives its end token 1 or never."""
    with torch.no_grad():
        network.transformer.ln_f.weight.zero_()
        network.transformer.ln_f.bias.fill_(1.0)
        network.lm_head.weight.zero_()
        network.lm_head.weight[0].fill_(direction)
    return network


def test_models_that_only_end_never_end_or_equal_the_teacher(checked, tmp_path):
    for name, direction in (("ends", 10.0), ("endless", -10.0), ("teacher", None), ("equal", None)):
        network = make_model("gpt2", seed=2, dtype=torch.float32)
        (network if direction is None else bent(network, direction)).save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
    names = [str(tmp_path / name) for name in ("ends", "endless", "equal")]
    more = [
        f"models=[{','.join(names)}]",
        f"teacher={tmp_path}/teacher",
        "max_new_tokens=6",
        *BRIEF,
        "suite.exposure.samples=5",
    ]
    found = run_suite(checked(tmp_path / "run", *more))
    for by_model in found["answers"]["plain"].values():
        ends, endless, equal = (by_model[name]["figures"] for name in names)
        assert (ends["length"]["mean"], ends["empty"]["mean"], ends["rouge_l"]["mean"]) == (1, 1, 0)
        assert (endless["length"]["mean"], endless["truncated"]["mean"]) == (6, 1)
        assert equal["reverse_kl"]["mean"] == pytest.approx(0, abs=1e-12)
    for by_model in found["exposure"].values():
        assert by_model[names[0]]["excess"] == [0.0] + [None] * (len(by_model[names[0]]["excess"]) - 1)
        assert by_model[names[1]]["student"]["alive"] == [by_model[names[1]]["student"]["alive"][0]] * 6
        assert set(by_model[names[2]]["excess"]) == {None}
    assert f"{tmp_path}/teacher" not in next(iter(found["position"].values()))


def test_without_a_teacher_or_references(checked, tmp_path, capsys):
    text = tmp_path / "bare.jsonl"
    text.write_text('{"instruction": "name 猫", "output": []}\n{"instruction": "list", "output": "a cat"}\n')
    found = run_suite(checked(tmp_path / "run", f"data.files=[{text}]", "teacher=null", "seeds=[null]"))
    assert found["teacher"] is None and found["position"] == found["exposure"] == {} == found["reference_loss"]
    for row in found["answers"]["plain"][str(text)].values():
        assert row["by_length"] == {} and not {"rouge_l", "exact_match", "reverse_kl"} & row["figures"].keys()
        assert row["figures"]["length"]["per_seed"].keys() == {"greedy"}
    bare, answered = lines(tmp_path / "run" / "answers.jsonl")[:2]
    assert bare["rouge_l"] is None and bare["references"] == [] and answered["rouge_l"] is not None
    assert (tmp_path / "run" / "tokens.jsonl").read_text() == ""
    shown = " ".join(capsys.readouterr().out.split())
    assert "not every prompt has a reference; Rouge-L and what else needs one are left out" in shown
    assert "No teacher: KL, exposure bias" in shown and "boolq: no file" in shown


def test_models_that_keep_different_prompts_are_named(checked, place, tmp_path, capsys):
    wordy = tmp_path / "wordy" / "student"
    make_model(seed=1, layers=1, dtype=torch.float32).save_pretrained(wordy)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "the the " + tokenizer.chat_template
    tokenizer.save_pretrained(wordy)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "the"}\n{"instruction": "the cat the"}\n')
    options = ["teacher=null", "data.max_prompt_tokens=6", f"data.files=[{rows}]", "suite.calibration.sst2.file=null"]
    found = run_suite(checked(tmp_path / "run", *BRIEF, *options, f"models=[{place}/one/student,{wordy}]"))
    (note,) = found["notes"]
    assert "the models answered different prompts (one/student 2, wordy/student 1)" in note
    assert "NOTE: " in capsys.readouterr().out
    alone = run_suite(checked(tmp_path / "alone", *BRIEF, *options, f"models=[{wordy}]"))
    assert alone["notes"] == []


def test_a_model_that_was_trained_with_another_template_is_named_before_and_after(checked, place, tmp_path, capsys):
    shutil.copytree(place / "one", tmp_path / "paper")
    (tmp_path / "paper" / "config.yaml").write_text("data:\n  template: paper\n")
    options = [f"models=[{tmp_path}/paper/student,{place}/two/student]", "suite.exposure=null", "teacher=null"]
    found = run_suite(checked(tmp_path / "run", *BRIEF, *options, "suite.calibration.sst2.file=null", "limit=2"))
    (note,) = found["notes"]
    assert note.startswith(f"{tmp_path}/paper/student was trained with data.template='paper'")
    shown = "".join(capsys.readouterr().out.split())
    assert shown.count("".join(f"NOTE: {note}".split())) == 2
    assert shown.index("NOTE:") < shown.index("Rouge-L,decoding")
