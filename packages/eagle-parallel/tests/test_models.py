"""Whole models over ranks equal one process in float64: loss, logits and every parameter gradient.

The truth is one process with transformers' own attention, each document in a call of its own. The ranks run packs, cut by a plan.
"""

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from eagle_parallel import gather, global_loss, global_normaliser, hf, init_mesh, make_plan, normalise_loss, shard_batch
from eagle_parallel.testing import check_collectives, record_collectives, run_ranks

transformers: Any = pytest.importorskip("transformers")

HEADS = ((28, 4), (14, 2), (7, 1), (32, 8), (3, 1))
FAMILIES = ("Qwen2", "Qwen3", "Llama")
PACKS = {
    "ones": (1, 1, 1, 1, 1),
    "fewer tokens than ranks": (2,),
    "primes": (37, 2, 13, 5, 23),
    "one long": (97,),
    "hundreds": tuple(1 + n % 3 for n in range(200)),
}
SPLITS = {world: [(world, ulysses) for ulysses in range(1, world + 1) if world % ulysses == 0] for world in (1, 2, 3, 4, 6, 8)}
VOCABULARY = 31


def build(family, heads):
    torch.manual_seed(1)
    hidden = heads[0] * (4 if heads[0] < 14 else 1)  # transformers wants a multiple of the heads
    options = {"vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": 20, "num_hidden_layers": 2, "head_dim": 4}
    options |= {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "max_position_embeddings": 128}
    special = {f"{token}_token_id": None for token in ("pad", "bos", "eos")}
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**options, **special))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3).add_(1.0 if parameter.ndim == 1 else 0.0)
    for module in list(model.modules()):
        for name, norm in list(module.named_children()):
            if type(norm).__name__.endswith("RMSNorm"):
                # transformers' own computes in float32, whose rounding would hide or fake a difference.
                exact = torch.nn.RMSNorm(norm.weight.shape[0], eps=norm.variance_epsilon)
                exact.weight = norm.weight
                setattr(module, name, exact)
    return model.to(torch.float64).train()


def batch_of(lengths, square_root, seed):
    """A pack as the collator gives it: labels shifted within each document, some tokens without a label."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    ids = torch.randint(VOCABULARY, (tokens,), generator=generator)
    labels, weights = torch.full((tokens,), -100), torch.zeros(tokens, dtype=torch.float64)
    start = 0
    for length in lengths:
        end = start + length
        labels[start : end - 1] = ids[start + 1 : end]
        # The last token predicts something too, so that documents of one token count.
        labels[end - 1] = int(torch.randint(VOCABULARY, (), generator=generator))
        labels[start:end][torch.rand(length, generator=generator) < 0.2] = -100
        supervised = int((labels[start:end] != -100).sum())
        weights[start:end] = max(supervised, 1) ** -0.5 if square_root else 1.0
        start = end
    weights[labels == -100] = 0.0
    labels[0], weights[0] = 3, 1.0
    positions = torch.cat([torch.arange(length) for length in lengths])
    rows = {"input_ids": ids, "position_ids": positions, "shift_labels": labels, "loss_weight": weights}
    return {name: row[None] for name, row in rows.items()}


def borders(lengths):
    return [0, *torch.tensor(lengths).cumsum(0).tolist()]


def loss_sum(logits, batch):
    losses = torch.nn.functional.cross_entropy(logits[0], batch["shift_labels"][0], reduction="none", ignore_index=-100)
    return (losses * batch["loss_weight"][0]).sum()


@cache
def truth(family, heads, packs, square_root):
    """(loss, logits of every pack, gradients) of one process, one document at a time."""
    model = build(family, heads)
    batches = [batch_of(PACKS[pack], square_root, seed) for seed, pack in enumerate(packs)]
    total = sum(float(batch["loss_weight"].sum()) for batch in batches)
    logits, loss = [], torch.zeros((), dtype=torch.float64)
    for pack, batch in zip(packs, batches, strict=True):
        documents = [model(batch["input_ids"][:, start:end]).logits for start, end in pairwise(borders(PACKS[pack]))]
        logits.append(torch.cat(documents, dim=1))
        loss = loss + loss_sum(logits[-1], batch) / total
    loss.backward()
    return loss.item(), [each.detach() for each in logits], {name: p.grad for name, p in model.named_parameters()}


def step_on_ranks(cp, ulysses, cases, algorithm: Any = "auto"):
    """Each case on this mesh: (loss, logits of this rank's pack, gradients, collectives); tensors on one rank of a group only."""
    mesh = init_mesh(cp, ulysses)
    results = []
    for family, heads, packs, square_root, checkpointing in cases:
        model = hf.apply(build(family, heads), mesh, algorithm=algorithm)
        if checkpointing:
            # The name that the installed transformers wants.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        plan = make_plan(borders(PACKS[packs[mesh.dp_rank]]), mesh, layout="zigzag")
        whole = batch_of(PACKS[packs[mesh.dp_rank]], square_root, mesh.dp_rank)
        local = shard_batch(whole, plan, mesh.cp_rank)
        normaliser = global_normaliser(float(local["loss_weight"].sum()), mesh)
        with record_collectives() as calls:
            logits = model(input_ids=local["input_ids"], position_ids=local["position_ids"], cp_plan=plan).logits
            loss = loss_sum(logits, local)
            normalise_loss(loss, normaliser).backward()
        joined = gather(logits.detach(), plan, mesh, dim=1)
        for parameter in model.parameters():
            assert parameter.grad is not None
            if mesh.world > 1:
                dist.all_reduce(parameter.grad)
        figure = global_loss(loss.item(), normaliser, mesh)
        gradients = {name: p.grad for name, p in model.named_parameters()} if mesh.rank == 0 else None
        results.append((figure, joined if mesh.cp_rank == 0 else None, gradients, calls))
    return results


def check_equal(found, expected, what):
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        bound = 1e-12 * max(float(gradient.abs().max()), 1e-3 * largest)
        difference = float((found[name] - gradient).abs().max())
        assert difference <= bound, f"{what}: {name} differs by {difference:.2e}, allowed are {bound:.2e}"


def check_cases(world, cp, ulysses, cases, **options):
    found = run_ranks(__file__, "step_on_ranks", (world,), arguments=(cp, ulysses, cases, *options.values()), seconds=250)[world]
    for place, case in enumerate(cases):
        family, heads, packs, square_root, _ = case
        expected_loss, expected_logits, expected_gradients = truth(family, heads, packs, square_root)
        for rank in range(world):
            loss, logits, _, _ = found[rank][place]
            assert loss == pytest.approx(expected_loss, rel=1e-12)
            if logits is not None:
                check_equal({"logits": logits}, {"logits": expected_logits[rank // cp]}, case)
        check_equal(found[0][place][2], expected_gradients, case)
        check_collectives([found[rank][place][3] for rank in range(world)])


def cases_for(turn, heads=HEADS):
    """Every head shape with every pack (hundreds of documents with two); family, weighting and checkpointing take turns."""
    cases = []
    for pack in PACKS:
        for shape in heads if pack != "hundreds" else heads[::4]:
            turn += 1
            cases.append((FAMILIES[turn % 3], shape, (pack,), turn % 2 == 0, turn // 2 % 2 == 0))
    return cases


FAST = [(world, ulysses) for world in (1, 2, 3, 4) for _, ulysses in SPLITS[world]]


@pytest.mark.parametrize(("world", "ulysses"), FAST)
def test_a_model_over_ranks_equals_one_process_in_loss_logits_and_every_gradient(world, ulysses):
    check_cases(world, world, ulysses, cases_for(world + ulysses))


@pytest.mark.parametrize(("dp", "cp", "ulysses"), [(2, 1, 1), (2, 2, 1), (2, 2, 2)])
def test_packs_of_several_data_parallel_ranks_come_to_one_mean(dp, cp, ulysses):
    packs = ("primes", "one long")
    cases = [("Qwen2", (7, 1), packs, square_root, square_root) for square_root in (False, True)]
    check_cases(dp * cp, cp, ulysses, cases)


@pytest.mark.soak
@pytest.mark.parametrize(("world", "ulysses"), [(world, ulysses) for world in SPLITS for _, ulysses in SPLITS[world]])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("algorithm", ["gather_kv", "ring"])
def test_every_model_mesh_pack_and_head_shape(world, ulysses, family, algorithm):
    cases = [
        (family, heads, (pack,), square_root, checkpointing)
        for heads in HEADS
        for pack in PACKS
        for square_root in (False, True)
        for checkpointing in (False, True)
    ]
    check_cases(world, world, ulysses, cases, algorithm=algorithm)
