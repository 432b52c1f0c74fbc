"""The main job: from a recipe to a trained checkpoint and a report, each phase done once and resumed where it stopped.

Phases: corpus, start model, preparation, stages, final checkpoint, evaluation, report. Each leaves its result in the
run folder whole or not at all, so the same command continues an interrupted run and does nothing for a finished one.
With several ranks the first does all of this, and the others train with it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import eagle_kernels
import eagle_parallel.hf
import torch
from eagle_data.prepare import DatasetReport
from eagle_data.tokens import PromptTokenizer
from eagle_parallel import init_mesh
from rich.markup import escape

from eagle_train.display import Display, duration
from eagle_train.held_out import evaluate
from eagle_train.launch import launch, starts_ranks
from eagle_train.memory import PeakMemory
from eagle_train.outcome import curves, report_values
from eagle_train.preflight import check, refused_addresses
from eagle_train.ranks import Ranks, all_ranks, device_of
from eagle_train.recipe import Recipe
from eagle_train.recipe_files import dump_recipe
from eagle_train.report import write_report
from eagle_train.run_folder import RunFolder
from eagle_train.shares import tile_choice
from eagle_train.stage_data import StageData, find_datasets, visual_rules
from eagle_train.starting_point import build_start, load_start
from eagle_train.surroundings import quiet_transformers, reproducible
from eagle_train.training import StageProgress, Trainer

Note = Callable[[], tuple[float, float]]


@dataclass(frozen=True)
class _Trained:
    """What training leaves in this process."""

    model: Any
    processor: Any
    data: StageData
    reports: Mapping[str, DatasetReport]
    tower: dict[str, Any]
    progress: Sequence[StageProgress]


class Run:
    """One recipe in one run folder."""

    def __init__(self, recipe: Recipe, display: Display):
        self.recipe = recipe
        self.folder = RunFolder(recipe.folder)
        self.display = display

    def start(self, *, fresh: bool = False) -> bool:
        """Do what is left of the run; False where it was finished already. `fresh` starts it over.

        Where the recipe wants several ranks and nobody has started them, they are started here, and print for themselves.
        Raises RunError for whatever is refused on purpose, and `Interrupted` where the user stops the training.
        """
        check(self.recipe)
        if starts_ranks(self.recipe):
            return launch(self.recipe, fresh=fresh)
        device = device_of(self.recipe)
        with all_ranks(device) as ranks, self.folder.held() if ranks.first else nullcontext():
            if not ranks.agree(ranks.first and self.folder.open(dump_recipe(self.recipe), fresh=fresh)):
                return False
            with quiet_transformers(), reproducible(threads=self.recipe.engine.threads, deterministic=device.type == "cpu"):
                if ranks.first:
                    self._execute(device, ranks)
                else:
                    self._train(device, ranks, lambda: None, 0.0)
        return True

    def _execute(self, device: torch.device, ranks: Ranks) -> None:
        before, peak = self.folder.so_far()
        started = time.monotonic()
        # Ranks of this machine are siblings: their common parent is the top of the tree.
        with PeakMemory(peak, root=None if ranks.alone else os.getppid()) as memory:

            def note() -> tuple[float, float]:
                now = before + time.monotonic() - started, memory.sample()
                self.folder.note(*now)
                return now

            try:
                self._conclude(self._train(device, ranks, note, before), device, note)
            finally:
                note()

    def _train(self, device: torch.device, ranks: Ranks, note: Callable[[], object], seconds_before: float) -> _Trained:
        recipe, folder, phase = self.recipe, self.folder, self.display.phase
        tower: dict[str, Any] = {}
        reports: dict[str, DatasetReport] = {}
        start = recipe.model.path or str(folder.start)
        with ranks.first_alone():
            entries = find_datasets(recipe, folder, phase)
            for line in refused_addresses(entries, recipe.data) if ranks.first else ():
                self.display.say(f"[yellow]{escape(line)}[/]")
            if recipe.model.toy is not None:
                tower = build_start(recipe, recipe.model.toy, folder.corpus, folder.start, phase)
            model, processor = load_start(recipe, start, device)
            note()
            data = StageData(recipe, entries, visual_rules(model.config, recipe.data), folder.prepared)
            if ranks.first:
                reports = data.prepare(PromptTokenizer(processor.tokenizer.backend_tokenizer), phase)
                note()

        mesh = init_mesh(cp=recipe.parallel.cp, ulysses=recipe.parallel.ulysses)
        if mesh.cp > 1:
            eagle_parallel.hf.apply(model, mesh)
        trainer = Trainer(
            recipe,
            model,
            partial(data.loader, load=tile_choice(mesh, model.config)),
            tile_size=data.rules.tile_size,
            mesh=mesh,
            device=device,
            checkpoints=folder.checkpoints,
            events=folder.events,
            data_digest=data.digest(),
            on_checkpoint=note,
        )
        trainer.check()
        if trainer.resume():
            self.display.say(f"[yellow]→[/] going on after step {trainer.global_step}, {duration(seconds_before)} into the run")
            if trainer.data_changed:
                self.display.say(
                    "[yellow]The annotations or media have changed since that step: the rest of the run uses them as they "
                    "are now, and some samples may be seen again or not at all.[/]"
                )
        # The ranks of a machine share its cores; more threads than cores slow every rank down several times.
        threads = max(1, torch.get_num_threads() // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
        with reproducible(threads=threads, deterministic=False):
            trainer.run(phase)
        return _Trained(model, processor, data, reports, tower, trainer.progress)

    def _conclude(self, trained: _Trained, device: torch.device, note: Note) -> None:
        """Save the final checkpoint, ask it the held-out questions and write the report."""
        recipe, folder = self.recipe, self.folder
        self._save_final(trained.model, trained.processor)
        try:
            held_out = evaluate(recipe, folder, device, self.display.phase)
            values = report_values(
                recipe,
                folder.path,
                progress=trained.progress,
                tower=trained.tower,
                held_out=held_out,
                samples=trained.data.counts(trained.reports, trained.progress),
                parameters=trained.model.num_parameters(),
                seconds=(now := note())[0],
                peak_rss_gib=now[1],
            )
            commands = self._next_commands()
            write_report(
                folder.path,
                values,
                curves=curves(recipe, trained.progress, trained.tower),
                shown=held_out.shown,
                next_steps=list(commands.values()),
            )
        except Exception:
            self.display.say(
                f"[yellow]Training is done and saved in {escape(str(folder.final))}; the same command tries the rest again.[/]"
            )
            raise
        self._say_summary(values, commands)

    def _save_final(self, model: Any, processor: Any) -> None:
        final = self.folder.final
        if final.is_dir():
            return
        partial = final.with_name(final.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        if self.recipe.model.kernels:
            eagle_kernels.revert(model)
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        os.replace(partial, final)

    def _next_commands(self) -> dict[str, str]:
        """What to do with the checkpoint, as lines for a shell, by what they are for."""
        picture = next(iter(sorted((self.folder.corpus / "media" / "held_out_strip").glob("*.png"))), None)
        shown, question = (str(picture), "Read the digits.") if picture else ("picture.png", "What is this?")
        model = ["--model", str(self.folder.final)]
        chat = shlex.join([*_command("eagle-serve"), "chat", *model, "--image", shown])
        return {
            "Chat with it": f'{chat} "{question}"',
            "Open the demo": shlex.join([*_command("eagle-serve"), "demo", *model]),
        }

    def _say_summary(self, report: dict[str, Any], commands: dict[str, str]) -> None:
        say = self.display.say
        rates = report["accuracy"]
        if rates:
            tasks = ", ".join(f"{task} {rate:.1%}" for task, rate in rates.items() if task != "overall")
            say(f"\n[bold]Held-out exact match {rates['overall']:.1%}[/] ({escape(tasks)})")
        for count, what in (
            (report["samples"]["rejected"], "samples"),
            (len(report["questions_rejected"]), "held-out questions"),
        ):
            if count:
                say(f"[yellow]Rejected {what}: {count}. The report says where and why.[/]")
        page = escape(str(self.folder.report_html))
        say(f"{duration(report['seconds'])}, {report['peak_rss_gib']:.2f} GiB at most. Report: [cyan]{page}[/]\n")
        for title, command in commands.items():
            say(f"{title + ':':<15} [bold]{escape(command)}[/]")


def _command(program: str) -> list[str]:
    """How the user starts a program of this environment: through the uv that started us, or directly."""
    uv = os.environ.get("UV")
    if not uv or not os.environ.get("UV_RUN_RECURSION_DEPTH"):
        return [program]
    on_path = shutil.which("uv")
    same = on_path is not None and Path(on_path).samefile(uv)
    return ["uv" if same else os.path.relpath(uv), "run", program]


__all__ = ["Run"]
