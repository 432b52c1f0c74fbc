"""The main job: from a recipe to a trained checkpoint and a report, each phase done once and resumed where it stopped.

Phases: corpus, start model, preparation, stages, final checkpoint, evaluation, report. Each leaves its result in the
run folder whole or not at all, so the same command continues an interrupted run and does nothing for a finished one.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import eagle_kernels
import torch
from eagle_data.tokens import PromptTokenizer
from eagle_parallel import init_mesh
from rich.markup import escape

from eagle_train.display import Display, duration
from eagle_train.held_out import evaluate
from eagle_train.memory import PeakMemory
from eagle_train.outcome import curves, report_values
from eagle_train.preflight import check
from eagle_train.recipe import Recipe
from eagle_train.recipe_files import dump_recipe
from eagle_train.report import write_report
from eagle_train.run_folder import RunFolder
from eagle_train.stage_data import StageData, find_datasets, visual_rules
from eagle_train.starting_point import build_start, load_start
from eagle_train.surroundings import quiet_transformers, reproducible
from eagle_train.training import Trainer

Note = Callable[[], tuple[float, float]]


class Run:
    """One recipe in one run folder."""

    def __init__(self, recipe: Recipe, display: Display):
        self.recipe = recipe
        self.folder = RunFolder(recipe.folder)
        self.display = display

    def start(self, *, fresh: bool = False) -> bool:
        """Do what is left of the run; False where it was finished already. `fresh` starts it over.

        Raises RunError for whatever is refused on purpose, and `Interrupted` where the user stops the training.
        """
        check(self.recipe)
        with self.folder.held():
            if not self.folder.open(dump_recipe(self.recipe), fresh=fresh):
                return False
            device = _device(self.recipe)
            with quiet_transformers(), reproducible(threads=self.recipe.engine.threads, deterministic=device.type == "cpu"):
                self._execute(device)
        return True

    def _execute(self, device: torch.device) -> None:
        before, peak = self.folder.so_far()
        started = time.monotonic()
        with PeakMemory(peak) as memory:

            def note() -> tuple[float, float]:
                now = before + time.monotonic() - started, memory.sample()
                self.folder.note(*now)
                return now

            try:
                self._phases(device, note, before)
            finally:
                note()

    def _phases(self, device: torch.device, note: Note, seconds_before: float) -> None:
        recipe, folder, phase = self.recipe, self.folder, self.display.phase
        entries = find_datasets(recipe, folder, phase)
        tower: dict[str, Any] = {}
        start = recipe.model.path or str(folder.start)
        if recipe.model.toy is not None:
            tower = build_start(recipe, recipe.model.toy, folder.corpus, folder.start, phase)
        model, processor = load_start(recipe, start, device)
        note()

        data = StageData(recipe, entries, visual_rules(model.config, recipe.data), folder.prepared)
        reports = data.prepare(PromptTokenizer(processor.tokenizer.backend_tokenizer), phase)
        note()

        trainer = Trainer(
            recipe,
            model,
            data.loader,
            tile_size=data.rules.tile_size,
            mesh=init_mesh(cp=recipe.parallel.cp, ulysses=recipe.parallel.ulysses),
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
        trainer.run(phase)
        self._save_final(model, processor)
        try:
            held_out = evaluate(recipe, folder, device, phase)
            values = report_values(
                recipe,
                folder.path,
                progress=trainer.progress,
                tower=tower,
                held_out=held_out,
                samples=data.counts(reports, trainer.progress),
                parameters=model.num_parameters(),
                seconds=(now := note())[0],
                peak_rss_gib=now[1],
            )
            commands = self._next_commands()
            write_report(
                folder.path,
                values,
                curves=curves(recipe, trainer.progress, tower),
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


def _device(recipe: Recipe) -> torch.device:
    kind = recipe.engine.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(kind)


__all__ = ["Run"]
