"""The whole evaluation on tiny models: its figures by other roads, work stopped and shared, mistakes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref

import pytest
import torch
from hydra import compose, initialize_config_dir

import minillm.suite.run
import minillm.suite.work
from minillm.data import read_records
from minillm.errors import ConfigError, DataError
from minillm.evaluation import answer_prompts, summarise
from minillm.metrics import calibration_figures, exposure_curve, label_probabilities, rouge_l
from minillm.metrics.judge import Judge
from minillm.models import Checkpoint, LanguageModel, pair_of
from minillm.prefixes import prefix_kl, sample_answers
from minillm.suite import check_suite, run_suite
from minillm.suite.units import Store
from minillm.zero_shot import label_logprobs, word_tokens
from tests.chat_server import KEY, reply, serving
from tests.conf.test_compose import CONF
from tests.conftest import WORDS, make_model, make_tokenizer
from tests.integration.commands import ROOT

SAMPLES = 5
BRIEF = ["seeds=[1]", "~suite.decodings.no_repeat_ngram_1"]


@pytest.fixture(scope="module")
def place(world, tmp_path_factory):
    """Two students and a teacher, 12 and 5 prompts, 7 labelled rows."""
    folder = tmp_path_factory.mktemp("suite")
    for name in ("one", "two"):
        make_model(seed=1 if name == "one" else 4, layers=1, dtype=torch.float32).save_pretrained(
            folder / name / "student"
        )
        make_tokenizer().save_pretrained(folder / name / "student")
    rows = [{"text": f"{WORDS[i]} {WORDS[i + 1]}", "label": i % 2} for i in range(7)]
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def options(world, place, run_dir, *more):
    return [
        "suite=paper", f"models=[{place}/one/student,{place}/two/student]", f"teacher={world}/teacher",
        f"data.files=[{world}/val.jsonl,{world}/train.jsonl]", "data.template=chat", "seeds=[1,2]", "max_new_tokens=4",
        "chunk=3", "dtype=float64", f"suite.exposure.samples={SAMPLES}", "suite.token_rows=2",
        f"suite.calibration.sst2.file={place}/choices.jsonl", "suite.calibration.sst2.words=[red,blue]",
        "~suite.decodings.no_repeat_ngram_6", "+suite.decodings.no_repeat_ngram_1=1",
        f"run.dir={run_dir}", "run.name=test", *more,
    ]  # fmt: skip


@pytest.fixture
def checked(world, place):
    def make(run_dir, *more):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return check_suite(compose("evaluate", options(world, place, run_dir, *more)))

    return make


@pytest.fixture(scope="module")
def whole(world, place, tmp_path_factory):
    """The directory of an undisturbed run."""
    run_dir = tmp_path_factory.mktemp("whole")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run_suite(check_suite(compose("evaluate", options(world, place, run_dir))))
    return run_dir


def results(run_dir):
    return json.loads((run_dir / "metrics.json").read_text())


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def same(run_dir, other):
    return all(
        (run_dir / name).read_bytes() == (other / name).read_bytes()
        for name in ("metrics.json", "answers.jsonl", "tokens.jsonl")
    )


def loaded(world, place, name="one"):
    (student, tokenizer), (teacher, _) = (
        Checkpoint(str(path)).load(torch.float64) for path in (place / name / "student", world / "teacher")
    )
    return pair_of(student.eval(), teacher, tokenizer, tokenizer)


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
    assert kinds.count("samples") == 2 + 4 and kinds.count("exposure") == 2 * (2 + 4)  # chunks of 5 and 12 by 3


def test_stopped_work_goes_on_and_ends_the_same(whole, checked, tmp_path, monkeypatch):
    made, real = [], Store.write

    def write(store, unit, result):
        made.append(unit)
        if len(made) in (30, 61):
            raise KeyboardInterrupt
        real(store, unit, result)

    monkeypatch.setattr(Store, "write", write)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_suite(checked(tmp_path))
        assert not (tmp_path / "metrics.json").exists()
    run_suite(checked(tmp_path))
    assert same(tmp_path, whole)
    assert (
        len(made) == len(set(made)) + 2 == len(list((whole / "units").iterdir())) + 2
    )  # nothing twice but what was cut


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_the_work(whole, checked, tmp_path, monkeypatch, size):
    """One after the other, the first at the end: it puts together what all have made."""
    monkeypatch.setattr(minillm.suite.run, "started_processes", lambda: size)
    suite = checked(tmp_path)
    for rank in reversed(range(size)):
        monkeypatch.setattr(minillm.suite.run, "rank", lambda rank=rank: rank)
        before = {file.name for file in tmp_path.glob("units/*")}
        assert bool(run_suite(suite)) == (rank == 0)
        assert len({file.name for file in tmp_path.glob("units/*")} - before) > 20
    assert same(tmp_path, whole)


def test_a_finished_run_shows_its_tables_and_loads_no_model(whole, checked, monkeypatch, capsys):
    monkeypatch.setattr(minillm.suite.run, "load", lambda *_: pytest.fail("loaded"))
    assert run_suite(checked(whole)) == results(whole)
    shown = capsys.readouterr().out
    assert "metrics.json is already there" in shown and "Rouge-L, decoding no_repeat_ngram_1" in shown


def test_other_settings_data_and_weights_are_refused(whole, checked, world, place, tmp_path):
    with pytest.raises(ConfigError, match=r"seeds was \[1, 2\], is \[1\] now; .* choose another run.name"):
        checked(whole, "seeds=[1]")
    checked(whole, "devices=1", "device=cpu", "suite.judge.concurrency=2")  # nothing that is measured
    copy = tmp_path / "two" / "student"
    shutil.copytree(place / "two" / "student", copy)
    text = tmp_path / "text.jsonl"
    text.write_text('{"instruction": "name"}\n')
    run = tmp_path / "run"
    more = [f"models=[{copy}]", f"data.files=[{text}]", "seeds=[1]"]
    run_suite(checked(run, *more))
    text.write_text('{"instruction": "list"}\n')
    make_model(seed=9, layers=1, dtype=torch.float32).save_pretrained(copy)
    with pytest.raises(ConfigError) as caught:
        checked(run, *more)
    assert len(caught.value.problems) == 2 and f"{text} has other content now" in str(caught.value)
    (run / "settings.json").unlink()
    with pytest.raises(ConfigError, match="already holds another run"):
        checked(run, *more)


def test_a_damaged_unit_and_answers_that_do_not_fit_are_named(whole, checked, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    unit = next((tmp_path / "run" / "units").glob("answers-*"))
    text = unit.read_text()
    unit.write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match=f"{unit.name}: damaged .* delete it, and the same command makes it again"):
        run_suite(checked(tmp_path / "run"))
    cut = json.loads(text)
    cut["made"]["rows"].pop()
    unit.write_text(json.dumps(cut))
    with pytest.raises(DataError, match="answers, but not one to each of the"):
        run_suite(checked(tmp_path / "run"))


def test_one_model_is_loaded_at_a_time_beside_the_teacher(checked, tmp_path, monkeypatch):
    alive, real = weakref.WeakSet(), minillm.suite.run.load

    def load(suite, source):
        network, tokenizer = real(suite, source)
        alive.add(network)
        counts.append(len(alive))
        return network, tokenizer

    counts = []
    monkeypatch.setattr(minillm.suite.run, "load", load)
    found = run_suite(checked(tmp_path, "limit=2", "suite.exposure.limit=1", *BRIEF))
    assert {each["student"]["alive"][0] for files in found["exposure"].values() for each in files.values()} == {SAMPLES}
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
    more = [f"models=[{','.join(names)}]", f"teacher={tmp_path}/teacher", "max_new_tokens=6", *BRIEF]
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


def test_a_judge_rates_all_answers_and_its_key_is_in_no_file(checked, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def says(body):
        return reply("I cannot." if "[Instruction]\nthe to\n" in body["messages"][0]["content"] else "4 4")

    with serving(otherwise=says) as (chat, url):
        judge = [f"suite.judge.base_url={url}", "suite.judge.model=m", f"suite.judge.cache_dir={tmp_path}/cache"]
        judge += ["suite.judge.key_variable=JUDGE_API_KEY", "suite.judge.asks=1", "limit=4", "seeds=[1,2]"]
        with pytest.raises(ConfigError, match="suite.judge"):
            checked(tmp_path / "other", *judge, "suite.judge.asks=0")
        found = run_suite(checked(tmp_path / "run", *judge))
        n = len(chat.requests)
        assert {headers["Authorization"] for _, headers, _ in chat.requests} == {f"Bearer {KEY}"}
        (tmp_path / "run" / "metrics.json").unlink()
        for file in (tmp_path / "run" / "units").glob("judge-*"):
            file.unlink()
        assert run_suite(checked(tmp_path / "run", *judge)) == found and len(chat.requests) == n  # all in the cache
        (tmp_path / "run" / "metrics.json").unlink()
        monkeypatch.setattr(Judge, "rate", lambda *_: pytest.fail("asked"))
        assert run_suite(checked(tmp_path / "run", *judge)) == found
    counts = [by_model for files in found["judge"].values() for each in files.values() for by_model in each.values()]
    assert {each["items"] for each in counts} == {8} and all(each["rated"] + each["malformed"] == 8 for each in counts)
    assert sum(each["malformed"] for each in counts) > 0 and "asked" not in counts[0]
    for files in found["answers"].values():
        for by_model in files.values():
            assert {row["figures"]["judge"]["mean"] for row in by_model.values()} == {100}
    assert KEY not in capsys.readouterr().out
    for file in (tmp_path / "run").rglob("*"):
        assert file.is_dir() or KEY not in file.read_text()


def test_mistakes_come_in_one_message_before_a_model_is_loaded(checked, world, place, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "load", lambda *_: pytest.fail("loaded"))
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "labels.jsonl").write_text('{"text": "a", "label": 3}\n')
    with pytest.raises(ConfigError) as caught:
        checked(
            tmp_path / "run", f"models=[{place}/one,{place}/two/student,{place}/two/student/]", "chunk=0",
            "seeds=[1,1]",
            f"data.files=[{tmp_path}/empty.jsonl]", f"suite.calibration.sst2.file={tmp_path}/labels.jsonl",
            "suite.token_rows=-1", "suite.judge.model=m", "suite.exposure.samples=0", "+suite.decodings.x=-2",
        )  # fmt: skip
    text = str(caught.value)
    for part in (
        f"models: source={place}/one: no config.json inside; did you mean {place}/one/student?",
        f"models: {place}/two/student/ is there already, as {place}/two/student; wanted each once",
        "chunk=0: wanted a positive number", "seeds=[1, 1]: wanted different", "empty.jsonl: no records",
        "label 3 has no word; words=['red', 'blue']", "suite.judge.base_url=null with suite.judge.model=m",
        "suite.exposure.samples=0",
    ):  # fmt: skip
        assert part in text
    with pytest.raises(ConfigError) as caught:
        checked(tmp_path / "run", "suite.calibration.sst2.words=[red,nowhere]", "max_new_tokens=5000")
    text = str(caught.value)
    assert text.count("'nowhere' is unknown to the tokenizer") == 3 and text.count("2048 positions; lower them") == 3
    with pytest.raises(ConfigError, match="no such key; did you mean token_rows"):
        checked(tmp_path / "run", "+suite.token_row=1")


def test_a_model_of_another_vocabulary_is_refused_before_the_work(checked, place, tmp_path):
    make_model(vocabulary=33, seed=1, layers=1, dtype=torch.float32).save_pretrained(tmp_path / "other")
    other = make_tokenizer(("猫", "犬"))
    other.eos_token = "cat"
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="other with teacher .*end an answer differently"):
        checked(tmp_path / "run", f"models=[{place}/one/student,{tmp_path}/other]")


def command(world, place, run_dir, *more):
    return subprocess.Popen(
        [sys.executable, ROOT / "evaluate.py", *options(world, place, run_dir, *more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=run_dir.parent,
    )


@pytest.fixture(scope="module")
def undisturbed(world, place, tmp_path_factory):
    """By the command, with as many threads: they decide how sums are rounded."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    process = command(world, place, run_dir)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return run_dir


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_the_same(undisturbed, world, place, tmp_path):
    run_dir, kills = tmp_path / "run", 0
    for wanted in (1, 20, 45):
        process = command(world, place, run_dir)
        while process.poll() is None and len(list(run_dir.glob("units/[!.]*"))) < wanted:
            time.sleep(0.01)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert kills == 3 and not (run_dir / "metrics.json").exists()
    last = command(world, place, run_dir)
    said = last.communicate(timeout=300)[0]
    assert last.returncode == 0 and "units of work are already there" in said and same(run_dir, undisturbed)


@pytest.mark.slow
def test_two_processes_of_its_own(undisturbed, world, place, tmp_path):
    process = command(world, place, tmp_path / "run", "devices=2")
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert same(tmp_path / "run", undisturbed) and said.count("Exposure bias") == 1
