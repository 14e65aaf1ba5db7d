"""The edge to the shell: our errors as plain text, unknown keys with the nearest right name, a quiet terminal."""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from minillm.common.changes import flat
from minillm.common.checks import trainer_problem
from minillm.common.child import ROOT
from minillm.common.console import tracked
from minillm.common.errors import Interrupted, MinillmError, nearest
from minillm.common.overrides import compose_in_conf
from minillm.common.ranks import in_a_worker, rank, stand_back
from minillm.common.secret import redacted

# What a user can mend: permission, space, quota, a file in a directory's place.
_DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR, errno.EEXIST)
CONF = ROOT / "conf"


def run(main: Callable[[], None], config_name: str) -> None:
    """Call the main function of a command; an error that the user can act on ends it with a message and status 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises instead of printing its own summary
    os.environ.setdefault("WANDB_SILENT", "true")
    with _plain_errors(config_name):
        if config_name != "train" and {"--help", "-h"} & set(sys.argv[1:]):  # Hydra shows train.py's groups for each
            print((conf_of(config_name) / f"{config_name}.yaml").read_text().partition("\nhydra:\n")[0])
        else:
            main()
        sys.stdout.flush()
        if in_a_worker():
            _leave(0)


def job(function: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Wrap the function that @hydra.main calls: errors are shown before Hydra prints a line of its own, and a start
    that made nothing leaves no directory. A sweep's job is passed through: its trial is a command of its own."""

    @functools.wraps(function)
    def call(cfg: DictConfig) -> Any:
        hydra_cfg = HydraConfig.get()
        if hydra_cfg.mode != RunMode.RUN:
            return function(cfg)
        with _plain_errors(hydra_cfg.job.config_name):
            try:
                return function(cfg)
            except BaseException:
                if rank() == 0:
                    free(Path(hydra_cfg.runtime.output_dir), f"{hydra_cfg.job.name}.log")
                raise

    return call


@contextmanager
def _plain_errors(config_name: str) -> Iterator[None]:
    try:
        yield
    except Interrupted as error:
        if rank():
            _leave(error.status)
        fail(str(error), error.status)
    except MinillmError as error:
        fail(f"Error: {error}", error.status)
    except (HydraException, OmegaConfBaseException) as error:
        fail(f"Error: {explain(error, config_name)}")
    except BrokenPipeError:
        try:
            os.write(1, b"\n")
        except BrokenPipeError:  # the reader of `... | head` has left
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            _leave(128 + signal.SIGPIPE)
        raise  # of a socket or another process
    except OSError as error:
        if error.errno not in _DISK:
            raise
        fail(f"Error: cannot write {error.filename or 'a file'}: {error.strerror}")
    except KeyboardInterrupt:
        fail("Error: interrupted", 130)  # as shells have it


def free(folder: Path, log: str) -> None:
    """Remove a run directory that holds nothing but Hydra's log, and parents that are empty then. In another run's
    directory remove the empty log."""
    with suppress(OSError):
        if (folder / log).is_file() and not (folder / log).stat().st_size:
            (folder / log).unlink()
        if {each.name for each in folder.iterdir()} <= {log}:
            (folder / log).unlink(missing_ok=True)
            os.removedirs(os.path.relpath(folder))


def fail(text: str, status: int = 1) -> None:
    """Print a message on stderr and end the process."""
    text = redacted(text)
    if rank():
        stand_back()
        text = f"rank {rank()}: {text}"
    print(text, file=sys.stderr)
    _leave(status)


def _leave(status: int) -> NoReturn:
    """End the process; one of several at once, because threads of process groups may still want the interpreter and
    Python 3.11 aborts where one comes late."""
    if in_a_worker():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def prepare() -> None:
    """What every command sets once it has work to do: a wrong key is answered before torch is imported."""
    shown = rank() == 0 and sys.stderr.isatty()
    os.environ.setdefault(*(("TQDM_DELAY", "3") if shown else ("TQDM_DISABLE", "1")))  # of conversions and downloads
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    from minillm.common.machine import tune

    tune()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_tqdm_hook(lambda _, rows, names: tracked(rows[0], names.get("desc", "")))  # loading
    if shown:
        enable_progress_bars()  # of downloads, which disable_progress_bar turns off too
    for name in ("absl", "alembic", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def explain(error: HydraException | OmegaConfBaseException, config_name: str) -> str:
    """Hydra's message; for an unknown key or choice, the nearest right one."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if group == "experiment" and (now := _recipe_and_pair(name)):
            return f"experiment={name}: is {now} now"
        found, every = nearest(name, error.options, most=3), f"all: {', '.join(sorted(error.options))}"
        return f"{group}={name}: no such choice; {found}{f' {every}' if found.endswith('?') else ''}"
    text = "\n".join(filter(None, [str(error), str(error.__cause__ or "")]))
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{missing[1]}: missing; wanted {missing[1]}=..., see {conf_of(config_name).name}/{config_name}.yaml"
    match = re.search(r"Could not override '\+*([^']+)'", text)
    if not match:
        return text
    key = match[1]
    group, _, rest = key.partition(".")
    if group == "trainer" and (refused := trainer_problem(rest)):
        return refused
    files = sorted((CONF / group).glob("*.yaml"))
    having = [f"{group}={file.stem}" for file in files if rest in _names(OmegaConf.load(file))]
    known = _names(compose_in_conf(config_name, folder=conf_of(config_name)))
    if having or key in known:
        places = " and ".join(having) or "another choice of a group"
        return f"{key}: not a key of this config, but of {places}. To set it anyway: +{key}=..."
    return f"{key}: no such key; {nearest(key, known)}"


def _recipe_and_pair(name: str) -> str | None:
    """What took the place of experiment=<pair>_<recipe> in 0.2.0."""
    recipes, pairs = ({file.stem for file in (CONF / group).glob("*.yaml")} for group in ("recipe", "pair"))
    found = ((name.removesuffix(f"_{recipe}"), recipe) for recipe in sorted(recipes, key=len))
    return next((f"recipe={recipe} pair={pair}" for pair, recipe in found if pair in pairs), None)


def conf_of(config_name: str) -> Path:
    """The directory of a command's config; the chain's own, in which `pair` is a name and no group."""
    return CONF / "chain" if (CONF / "chain" / f"{config_name}.yaml").exists() else CONF


def _names(cfg: DictConfig) -> set[str]:
    """Of keys and of groups, dotted."""
    keys = [key.split(".") for key in flat(OmegaConf.to_container(cfg))]
    return {".".join(key[: n + 1]) for key in keys for n in range(len(key))}
