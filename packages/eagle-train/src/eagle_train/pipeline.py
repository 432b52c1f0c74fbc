"""The main job: from a recipe to a trained checkpoint and a report, each phase done once and resumed where it stopped.

Phases: corpus, start model, preparation, stages, final checkpoint, evaluation, report. Each leaves its result in the
run folder whole or not at all, so the same command continues an interrupted run and does nothing for a finished one.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import eagle_kernels
from eagle_data.ads import VisualRules
from eagle_data.dialect import get_dialect
from eagle_data.loader import PackLoader, Source
from eagle_data.prepare import prepare
from eagle_data.prepared import PreparedDataset
from eagle_data.recipe import DatasetEntry, load_data_recipe
from eagle_data.tokens import PromptTokenizer
from eagle_parallel import init_mesh
from eagle_train.digits import TASKS, build_corpus
from eagle_train.display import Display, duration
from eagle_train.memory import PeakMemory
from eagle_train.recipe import Recipe, Stage
from eagle_train.recipe_files import RecipeError, dump_recipe
from eagle_train.training import StageProgress, Trainer

STAND_IN = (
    "The tower and the language model were pretrained here for a minute or two, on digits and on text; "
    "they stand in for SigLIP2 and Qwen2.5."
)


class Run:
    """One recipe in one run folder."""

    def __init__(self, recipe: Recipe, display: Display):
        self.recipe = recipe
        self.folder = recipe.folder
        self.display = display
        self.stages: tuple[Stage, ...] = (*recipe.pretraining, *recipe.stages)
        self._record = self.folder / "run.json"

    def open(self, *, fresh: bool) -> bool:
        """Make or reopen the run folder; whether anything is left to do.

        Raises RecipeError where the folder holds a run of another recipe.
        """
        if fresh and self.folder.exists():
            if not (self.folder / "recipe.yaml").is_file() and any(self.folder.iterdir()):
                raise RecipeError(f"{self.folder} does not look like a run folder (no recipe.yaml); --fresh will not remove it")
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        resolved = dump_recipe(self.recipe)
        kept = self.folder / "recipe.yaml"
        if kept.is_file() and kept.read_text() != resolved:
            raise RecipeError(
                f"{self.folder} holds a run of a different recipe; add --fresh to start it over, or name=… for a folder of its own"
            )
        if not kept.is_file():
            _write_whole(kept, resolved)
        return not (self.folder / "report.json").is_file()

    def execute(self) -> None:
        """Do what is left of the run; raises `Interrupted` where the user stops it while training."""
        recipe = self.recipe
        record = json.loads(self._record.read_text()) if self._record.is_file() else {"seconds": 0.0, "peak_rss_gib": 0.0}
        started = time.monotonic()
        mesh = init_mesh(cp=recipe.parallel.cp, ulysses=recipe.parallel.ulysses)
        device = _device(recipe)
        if recipe.engine.threads:
            torch.set_num_threads(recipe.engine.threads)
        torch.use_deterministic_algorithms(device.type == "cpu")

        with PeakMemory(record["peak_rss_gib"]) as memory:

            def note() -> dict[str, float]:
                now = {"seconds": record["seconds"] + time.monotonic() - started, "peak_rss_gib": memory.sample()}
                _write_whole(self._record, json.dumps(now))
                return now

            try:
                entries = self._datasets()
                start, tower = self._start_model()
                model, processor = self._load(start, device)
                rules, tokenizer = self._rules(model.config, processor)
                reports = self._prepare(entries, rules, tokenizer)
                trainer = Trainer(
                    recipe,
                    model,
                    lambda number: self._loader(number, entries, rules),
                    tile_size=rules.tile_size,
                    mesh=mesh,
                    device=device,
                    folder=self.folder,
                    on_checkpoint=note,
                )
                if trainer.resume():
                    done = sum(progress.steps for progress in trainer.progress)
                    self.display.say(f"[yellow]→[/] going on after step {done}, {duration(record['seconds'])} into the run")
                trainer.run(self.display.phase)
                final = self._save_final(model, processor)
                values, shown = self._evaluate(final)
                counts = self._samples(reports, trainer.progress, entries, rules)
            except BaseException:
                note()
                raise
            self._report(values, shown, counts, trainer.progress, tower, model, note)

    def _datasets(self) -> dict[str, DatasetEntry]:
        data = self.recipe.data
        if data.corpus is not None:
            toy = self.recipe.model.toy
            with self.display.phase("corpus", 1) as bar:
                build_corpus(
                    self.folder / "corpus",
                    data.corpus,
                    seed=self.recipe.seed,
                    tokens_per_tile=toy.tokens_per_tile if toy else 1,
                    progress=lambda done, total: bar.update(done, "samples", total),
                )
            entries = load_data_recipe(self.folder / "corpus" / "recipe.json")
        elif data.recipe is not None:
            entries = load_data_recipe(data.recipe)
        else:
            entries = dict(data.datasets)
        for stage in self.stages:
            for name in (*stage.datasets, *stage.repeat):
                if name not in entries:
                    raise RecipeError(f"stage {stage.name!r} names the dataset {name!r}, but the data has {', '.join(entries)}")
        return entries

    def _start_model(self) -> tuple[str, dict[str, Any] | None]:
        """The checkpoint to start from, building and pretraining the toy's where it is not there yet."""
        toy = self.recipe.model.toy
        if toy is None:
            assert self.recipe.model.path is not None  # the recipe has one of the two
            return self.recipe.model.path, None
        from eagle_train.toy_model import build_toy, training_texts
        from eagle_train.tower_pretraining import pretrain_tower

        start = self.folder / "start"
        if not (start / "tower.json").is_file():
            partial = self.folder / "start.part"
            shutil.rmtree(partial, ignore_errors=True)
            torch.manual_seed(self.recipe.seed)
            build_toy(toy, training_texts(self.folder / "corpus"), partial)
            tower: dict[str, Any] = {}
            pretraining = self.recipe.tower_pretraining
            if pretraining is not None and pretraining.steps:
                from eagle_model import Eagle2_5_VLForConditionalGeneration

                model = Eagle2_5_VLForConditionalGeneration.from_pretrained(partial)
                torch.manual_seed(self.recipe.seed)
                losses: list[float] = []
                with self.display.phase("tower pretraining", pretraining.steps) as bar:

                    def progress(step: int, loss: float) -> None:
                        losses.append(loss)
                        bar.update(step, f"loss {loss:.3f}")

                    accuracy = pretrain_tower(model, pretraining, seed=self.recipe.seed, progress=progress)
                model.save_pretrained(partial)
                tower = {"steps": pretraining.steps, "samples": pretraining.steps * pretraining.batch, "accuracy": round(accuracy, 4), "losses": losses}
            (partial / "tower.json").write_text(json.dumps(tower))
            shutil.rmtree(start, ignore_errors=True)
            os.replace(partial, start)
        return str(start), json.loads((start / "tower.json").read_text())

    def _load(self, start: str, device: torch.device) -> tuple[Any, Any]:
        from eagle_model import Eagle2_5_VLForConditionalGeneration, Eagle2_5_VLProcessor

        model = Eagle2_5_VLForConditionalGeneration.from_pretrained(
            start, attn_implementation=self.recipe.model.attention, dtype=getattr(torch, self.recipe.engine.dtype)
        )
        if self.recipe.model.kernels:
            eagle_kernels.apply(model)
        if self.recipe.engine.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return model.to(device), Eagle2_5_VLProcessor.from_pretrained(start)

    def _rules(self, config: Any, processor: Any) -> tuple[VisualRules, PromptTokenizer]:
        data = self.recipe.data
        rules = VisualRules(
            tile_size=config.force_image_size or config.vision_config.image_size,
            tokens_per_tile=config.num_image_token,
            max_tiles=data.max_tiles or config.max_dynamic_tiles,
            min_tiles=config.min_dynamic_tiles,
            use_thumbnail=config.use_thumbnail,
            fps=data.fps,
            min_frames=data.min_frames,
            dialect=get_dialect(data.dialect),
        )
        return rules, PromptTokenizer(processor.tokenizer.backend_tokenizer)

    def _stage_datasets(self, stage: Stage, entries: dict[str, DatasetEntry]) -> tuple[str, ...]:
        return stage.datasets or tuple(entries)

    def _prepare(self, entries: dict[str, DatasetEntry], rules: VisualRules, tokenizer: PromptTokenizer) -> dict[str, Any]:
        lengths: dict[str, set[int]] = {}
        for stage in self.stages:
            for name in self._stage_datasets(stage, entries):
                lengths.setdefault(name, set()).add(stage.context_length)
        used = {name: entries[name] for name in entries if name in lengths}
        with self.display.phase("preparation", 1) as bar:
            counts = dict.fromkeys(used, 0)
            totals = {name: _count_lines(entry.annotation) for name, entry in used.items()}

            def progress(name: str, done: int) -> None:
                counts[name] = done
                bar.update(sum(counts.values()), name, sum(totals.values()))

            return prepare(
                used,
                self.folder / "prepared",
                context_lengths={name: sorted(values) for name, values in lengths.items()},
                rules=rules,
                tokenizer=tokenizer,
                verify=self.recipe.data.verify,
                progress=progress,
            )

    def _loader(self, number: int, entries: dict[str, DatasetEntry], rules: VisualRules) -> PackLoader:
        stage = self.stages[number]
        sources = []
        for name in self._stage_datasets(stage, entries):
            entry = entries[name]
            dataset = PreparedDataset(self.folder / "prepared" / name, stage.context_length)
            repeat = entry.repeat_time * entry.weight * stage.repeat.get(name, 1.0)
            sources.append(Source(dataset, repeat, entry.data_augment))
        return PackLoader(
            sources,
            context_length=stage.context_length,
            tile_size=rules.tile_size,
            seed=self.recipe.seed * 1000 + number,
            max_tiles=stage.max_tiles_per_pack,
            use_thumbnail=rules.use_thumbnail,
            prefetch=self.recipe.engine.prefetch,
        )

    def _save_final(self, model: Any, processor: Any) -> Path:
        final = self.folder / "checkpoint-final"
        if not final.is_dir():
            partial = self.folder / "checkpoint-final.part"
            shutil.rmtree(partial, ignore_errors=True)
            if self.recipe.model.kernels:
                eagle_kernels.revert(model)
            model.save_pretrained(partial)
            processor.save_pretrained(partial)
            os.replace(partial, final)
        return final

    def _evaluate(self, final: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Answer the held-out questions with the saved checkpoint, loaded as a user would load it."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from eagle_train.evaluation import accuracy, answer, majority, read_questions
        from eagle_train.report import choose_shown, show

        evaluation = self.recipe.evaluation
        sets, root = dict(evaluation.sets), evaluation.root
        if not sets and self.recipe.data.corpus is not None:
            corpus = self.folder / "corpus"
            sets, root = {task: corpus / "held_out" / f"{task}.jsonl" for task in TASKS}, corpus / "media"
        empty = {"accuracy": {}, "accuracy_noise": {}, "accuracy_majority": {}, "questions": {}, "evaluation_rejects": []}
        if not sets:
            return empty, []
        questions, rejects = read_questions(sets, root)
        if not questions:
            return {**empty, "evaluation_rejects": rejects}, []
        model = AutoModelForImageTextToText.from_pretrained(final).eval().to(_device(self.recipe))
        processor = AutoProcessor.from_pretrained(final)
        passes = 1 + evaluation.noise
        with self.display.phase("evaluation", passes * len(questions)) as bar:

            def run(noise_seed: int | None, before: int) -> Any:
                return answer(
                    model,
                    processor,
                    questions,
                    max_new_tokens=evaluation.max_new_tokens,
                    batch=evaluation.batch,
                    noise_seed=noise_seed,
                    progress=lambda done: bar.update(before + done, "questions answered"),
                )

            answers = run(None, 0)
            noisy = run(self.recipe.seed, len(questions)) if evaluation.noise else []
            shown = [show(item, processor) for item in choose_shown(answers, evaluation.pictures)]
        counts: dict[str, int] = {"overall": len(questions)}
        for question in questions:
            counts[question.task] = counts.get(question.task, 0) + 1
        values = {
            "accuracy": accuracy(answers),
            "accuracy_noise": accuracy(noisy),
            "accuracy_majority": majority(questions),
            "questions": counts,
            "evaluation_rejects": rejects,
        }
        return values, shown

    def _samples(
        self, reports: dict[str, Any], progress: list[StageProgress], entries: dict[str, DatasetEntry], rules: VisualRules
    ) -> dict[str, Any]:
        """Distinct samples read, trained on, degraded and rejected, with the reasons of the first hundred."""
        trained: set[str] = set()
        degraded: set[str] = set()
        failures: dict[str, str] = {}
        for number, stage in enumerate(progress):
            failures.update(dict(map(tuple, stage.failures)))
            seen, gave_up = self._loader(number, entries, rules).members(stage.packs)
            trained |= seen
            degraded |= gave_up
        trained -= failures.keys()
        with (self.folder / "prepared" / "rejects.jsonl").open() as lines:
            rejects = [json.loads(line) for line in lines]
        reasons = [{"where": r["where"], "reason": r["reason"]} for r in rejects] + [
            {"where": where, "reason": reason} for where, reason in sorted(failures.items())
        ]
        return {
            "samples": {
                "read": sum(report.read for report in reports.values()),
                "trained": len(trained),
                "rejected": sum(report.rejected for report in reports.values()) + len(failures),
                "degraded": len(degraded & trained),
            },
            "rejects": [{**reason, "where": _relative(reason["where"], self.folder)} for reason in reasons[:100]],
        }

    def _report(
        self,
        values: dict[str, Any],
        shown: list[dict[str, Any]],
        counts: dict[str, Any],
        progress: list[StageProgress],
        tower: dict[str, Any] | None,
        model: Any,
        note: Callable[[], dict[str, float]],
    ) -> None:
        from eagle_train.report import Curve, write_report

        stages = [
            {
                "name": stage.name,
                "context_length": stage.context_length,
                "steps": done.steps,
                "tokens": done.tokens,
                "samples": done.samples,
                "loss_first": _mean(done.losses[: max(1, len(done.losses) // 10)]),
                "loss_last": _mean(done.losses[-max(1, len(done.losses) // 10) :]),
            }
            for stage, done in zip(self.stages, progress, strict=True)
        ]
        curves = [Curve(stage.name, done.losses) for stage, done in zip(self.stages, progress, strict=True)]
        pretraining = stages[: len(self.recipe.pretraining)]
        if tower:
            tenth = max(1, len(tower["losses"]) // 10)
            entry = {"name": "tower", "context_length": None, "steps": tower["steps"], "tokens": 0, "samples": tower["samples"]}
            entry |= {"loss_first": _mean(tower["losses"][:tenth]), "loss_last": _mean(tower["losses"][-tenth:])}
            pretraining = [{**entry, "accuracy": tower["accuracy"]}, *pretraining]
            curves = [Curve("tower", tower["losses"]), *curves]
        final = self.folder / "checkpoint-final"
        chat, demo = self._next_steps(final)
        rejects = [{"where": _relative(r.where, self.folder), "reason": r.reason} for r in values.pop("evaluation_rejects")]
        report = {
            "name": self.recipe.name,
            "description": self.recipe.description,
            **note(),
            "seed": self.recipe.seed,
            "parameters": model.num_parameters(),
            "pretraining": pretraining,
            "stages": stages[len(self.recipe.pretraining) :],
            **values,
            "samples": counts["samples"],
            "rejects": counts["rejects"] + rejects,
            "notes": STAND_IN if self.recipe.model.toy else "",
        }
        report["seconds"] = round(report["seconds"], 1)
        report["peak_rss_gib"] = round(report["peak_rss_gib"], 3)
        write_report(self.folder, report, curves=curves, shown=shown, next_steps=[chat, demo])
        self._say_summary(report, chat, demo)

    def _next_steps(self, final: Path) -> tuple[str, str]:
        example = ""
        if self.recipe.data.corpus is not None:
            picture = next(iter(sorted((self.folder / "corpus" / "media" / "held_out_strip").glob("*.png"))), None)
            example = f'--image {picture} "Read the digits."' if picture else ""
        example = example or '--image picture.png "What is this?"'
        return f"uv run eagle-serve chat --model {final} {example}", f"uv run eagle-serve demo --model {final}"

    def _say_summary(self, report: dict[str, Any], chat: str, demo: str) -> None:
        say = self.display.say
        rates = report["accuracy"]
        if rates:
            tasks = ", ".join(f"{task} {rate:.1%}" for task, rate in rates.items() if task != "overall")
            say(f"\n[bold]Held-out exact match {rates['overall']:.1%}[/] ({tasks})")
        rejected = report["samples"]["rejected"]
        if rejected:
            say(f"[yellow]{rejected} samples were rejected; the report lists where and why[/]")
        say(f"{duration(report['seconds'])}, {report['peak_rss_gib']:.2f} GiB at most. Report: [cyan]{self.folder / 'report.html'}[/]\n")
        say(f"Chat with it:   [bold]{chat}[/]")
        say(f"Open the demo:  [bold]{demo}[/]")


def _count_lines(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip())
    except OSError:
        return 0


def _device(recipe: Recipe) -> torch.device:
    kind = recipe.engine.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(kind)


def _mean(values: list[float]) -> float:
    return round(sum(values) / max(len(values), 1), 4)


def _relative(where: str, folder: Path) -> str:
    return where.removeprefix(f"{folder}{os.sep}")


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
