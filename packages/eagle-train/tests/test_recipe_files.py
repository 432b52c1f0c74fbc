from pathlib import Path

import pytest
from eagle_train.recipe_files import RecipeError, builtin_recipes, dump_recipe, load_recipe


def write(folder: Path, text: str, name: str = "mine.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_every_built_in_recipe_resolves_and_loads_back_equal(name: str, tmp_path: Path):
    recipe = load_recipe(name)
    again = load_recipe(write(tmp_path, dump_recipe(recipe)))
    assert again == recipe


def test_a_misspelt_key_is_an_error_that_names_it_and_its_nearest_neighbour(tmp_path: Path):
    path = write(tmp_path, "base: quickstart\nengine:\n  thread: 1\n")
    with pytest.raises(RecipeError, match="unknown key 'thread' in Engine; did you mean 'threads'") as error:
        load_recipe(path)
    assert path in str(error.value)


def test_an_unknown_recipe_name_suggests_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'quickstart'"):
        load_recipe("quickstrat")


def test_overrides_reach_values_list_items_by_number_and_stages_by_name():
    recipe = load_recipe("quickstart", ["seed=7", "stages.0.lr=1e-4", "stages.long.steps=3", "data.corpus.digits=10"])
    assert recipe.seed == 7
    assert recipe.stages[0].lr == 1e-4
    assert next(stage for stage in recipe.stages if stage.name == "long").steps == 3
    assert recipe.data.corpus is not None
    assert recipe.data.corpus.digits == 10


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "is not key=value"),
        ("stages.9.lr=1", "is not an item of the list"),
        ("seed.deep=1", "has no keys of its own"),
        ("sede=1", "did you mean 'seed'"),
        ("stages.0.lr=fast", "lr"),
        ("data.dialect=pirate", "choose one of released, training"),
    ],
)
def test_a_wrong_override_is_an_error_that_says_what_is_wrong(override: str, message: str):
    with pytest.raises(RecipeError, match=message):
        load_recipe("quickstart", [override])


def test_a_recipe_inherits_key_by_key_and_replaces_lists(tmp_path: Path):
    base = load_recipe("quickstart")
    path = write(
        tmp_path,
        "base: quickstart\nname: mine\nengine: {threads: 1}\nstages:\n  - {name: only, context_length: 64, steps: 2, lr: 1e-3}\n",
    )
    recipe = load_recipe(path)
    assert recipe.engine.threads == 1
    assert recipe.engine.prefetch == base.engine.prefetch
    assert [stage.name for stage in recipe.stages] == ["only"]
    assert recipe.stages[0].lr == 1e-3


def test_recipes_that_inherit_in_a_circle_are_refused(tmp_path: Path):
    write(tmp_path, "base: b.yaml\n", "a.yaml")
    write(tmp_path, "base: a.yaml\n", "b.yaml")
    with pytest.raises(RecipeError, match="circle"):
        load_recipe(str(tmp_path / "a.yaml"))


def test_paths_in_a_file_are_taken_from_its_folder(tmp_path: Path):
    (tmp_path / "data.json").write_text("{}")
    text = "name: m\ndata: {recipe: data.json}\nmodel: {path: some/model}\nstages: [{name: s, context_length: 64, steps: 1}]\n"
    assert load_recipe(write(tmp_path, text)).data.recipe == tmp_path / "data.json"


STAGE = "stages: [{name: s, context_length: 64, steps: 1}]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"name: m\ndata: {{}}\nmodel: {{path: x}}\n{STAGE}", "exactly one of recipe, datasets or corpus"),
        (f"name: m\ndata: {{recipe: r}}\nmodel: {{}}\n{STAGE}", "exactly one of path"),
        ("name: m\ndata: {recipe: r}\nmodel: {path: x}\nstages: [{name: s, context_length: 64}]\n", "exactly one of steps"),
        ("name: m\ndata: {recipe: r}\nmodel: {path: x}\nstages: []\n", "stages"),
        (f"name: m\ndata: {{recipe: r}}\nmodel: {{path: x}}\ntower_pretraining: {{}}\n{STAGE}", "for a toy model only"),
        ("- a\n- b\n", "must hold a mapping"),
        ("name: [\n", "is not YAML"),
    ],
)
def test_a_recipe_that_says_too_little_or_too_much_is_refused(text: str, message: str, tmp_path: Path):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, text))


def test_a_file_that_is_not_text_is_refused(tmp_path: Path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read as UTF-8"):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_numbers_with_a_bare_exponent_are_numbers_and_names_that_start_with_a_digit_stay_names(tmp_path: Path):
    text = "name: 2024-run\ndata: {recipe: 7.json}\nmodel: {path: 3d/model}\n"
    recipe = load_recipe(write(tmp_path, text + "stages: [{name: 32k, context_length: 64, steps: 1, lr: 1e-4, clip: 5E-1}]\n"))
    assert (recipe.name, recipe.model.path, recipe.stages[0].name) == ("2024-run", "3d/model", "32k")
    assert (recipe.stages[0].lr, recipe.stages[0].clip) == (1e-4, 0.5)


def test_every_path_of_a_file_is_taken_from_its_folder_and_of_an_override_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own, here = tmp_path / "own", tmp_path / "here"
    (own / "start").mkdir(parents=True)
    (here / "start").mkdir(parents=True)
    text = "name: m\ndata: {datasets: {a: {annotation: a.jsonl, root: media}, b: {annotation: b.jsonl}}}\n"
    text += f"model: {{path: start}}\nevaluation: {{sets: {{t: t.jsonl}}}}\n{STAGE}"
    path = write(own, text)
    monkeypatch.chdir(here)
    recipe = load_recipe(path)
    assert recipe.data.datasets["a"].annotation == own / "a.jsonl"
    assert recipe.data.datasets["a"].root == own / "media"
    assert recipe.data.datasets["b"].root == own
    assert recipe.model.path == str(own / "start")
    assert (recipe.evaluation.sets["t"], recipe.evaluation.root) == (own / "t.jsonl", own)
    recipe = load_recipe(path, ["model.path=start", "data.datasets.a.annotation=c.jsonl", "evaluation.sets={u: u.jsonl}"])
    assert recipe.model.path == str(here / "start")
    assert recipe.data.datasets["a"].annotation == here / "c.jsonl"
    assert recipe.evaluation.sets == {"u": here / "u.jsonl"}


def test_paths_of_a_base_recipe_are_taken_from_its_own_folder(tmp_path: Path):
    (tmp_path / "base").mkdir()
    text = "name: m\ndata: {datasets: {a: {annotation: a.jsonl, root: media}}}\nmodel: {path: nvidia/Eagle-2.5-8B}\n"
    write(tmp_path / "base", text + STAGE)
    recipe = load_recipe(write(tmp_path, "base: base/mine.yaml\ndata: {datasets: {a: {annotation: mine.jsonl}}}\n"))
    assert recipe.data.datasets["a"].annotation == tmp_path / "mine.jsonl"
    assert recipe.data.datasets["a"].root == tmp_path / "base" / "media"
    assert recipe.model.path == "nvidia/Eagle-2.5-8B"


def test_recipes_of_the_same_name_in_two_folders_are_no_circle(tmp_path: Path):
    (tmp_path / "base").mkdir()
    write(tmp_path / "base", "base: quickstart\nseed: 4\n")
    assert load_recipe(write(tmp_path, "base: base/mine.yaml\nname: mine\n")).seed == 4
