# %% [markdown]
# # Your first swarm
#
# Three islands train one small Llama together, each a process of its own on
# this machine. One of them is killed on the way. The others go on, it comes
# back, and at the end all of them hold the same bits of one model.
#
# Run it cell by cell in an editor that knows `# %%`, make a notebook of it
# (`pip install jupytext`, `jupytext --to ipynb first_swarm.py`), or run it as
# a script: `python experiments/first_swarm.py`. It takes about two minutes on
# two cores, no GPU, and needs `pip install 'intellect_jax[experiments]'`; in a
# checkout `make setup` has done that.

# %%
import json
import os
import pathlib
import time

from matplotlib import pyplot as plt

from intellect_jax import config as config_lib
from intellect_jax.observe import metrics
from intellect_jax.observe.progress import Progress
from intellect_jax.swarm import Swarm, sample

# %% [markdown]
# ## Settings
#
# Change them here, or from outside: `SWARM_ISLANDS=4 python …`. Any field of
# `configs/base.py` can go into `FIELDS`. Short rounds let one see more of them.

# %%
CONFIG = os.environ.get(
  "SWARM_CONFIG", config_lib.base_path().with_name("demo.py")
)
WORKDIR = os.environ.get("SWARM_WORKDIR", time.strftime("runs/swarm-%d-%H%M%S"))
ISLANDS = int(os.environ.get("SWARM_ISLANDS", 3))
VICTIM = os.environ.get("SWARM_VICTIM", f"island-{ISLANDS - 1}")
KILL_AT = int(os.environ.get("SWARM_KILL_AT", 2))  # record
FIELDS = {
  "run.tokens": 500_000,
  "run.inner.decay_tokens": 150_000,
  "run.outer.inner_steps": 10,
}
FIELDS |= json.loads(os.environ.get("SWARM_FIELDS", "{}"))

config = config_lib.load(CONFIG)
config.update_from_flattened_dict(FIELDS)
flags = [
  f"--config={CONFIG}",
  *(f"--config.{f}={v}" for f, v in FIELDS.items()),
]
workdir = pathlib.Path(WORKDIR).absolute()

# %% [markdown]
# ## What the islands do
#
# All start from the same parameters θ. Then, again and again
# ([DiLoCo](https://arxiv.org/abs/2311.08105)):
#
# 1. Each island takes `inner_steps` AdamW steps on text of its own. It talks to
#    nobody meanwhile; its parameters x drift away from θ.
# 2. It proposes how far it came, the **delta** Δ = θ − x, a byte for each value.
# 3. The islands average their deltas, and each takes the same outer step: the
#    mean is used like a gradient, with momentum. Now all have a new θ.
#
# So they exchange a byte a parameter once in `inner_steps` steps, where data
# parallelism moves four bytes a parameter at every step.

# %%
run = config.run
print(
  f"{run.name}: {run.model.layers} layers, {run.model.width} wide."
  f" {run.outer.inner_steps} inner steps a round, deltas as {run.outer.codec},"
  f" outer learning rate {run.outer.learning_rate}, until {run.tokens:,} tokens."
)

# %% [markdown]
# ## Start a swarm, kill an island
#
# `Swarm` starts a coordinator, which moves no tensors and only says who is in,
# and the islands. When `KILL_AT` records are committed, `VICTIM` gets SIGKILL:
# no goodbye, nothing saved. `watch` starts it again, as a supervisor on a real
# host would.
#
# See what the others wait for: at first for its proposal, until they have heard
# nothing of it for `lease_seconds`. Then they commit without it. Nobody is
# stopped when it comes back: it restores its checkpoint and fetches the records
# that it missed.
#
# Whatever happens in this cell, no process outlives it.

# %%
with (
  Swarm(workdir, ISLANDS, flags) as swarm,
  Progress(swarm.status, run) as progress,
):
  killed_at = None
  for status in swarm.watch():
    if killed_at is None and status.record >= KILL_AT:
      killed_at = status.record
      progress.note(f"SIGKILL to {VICTIM} at record {killed_at}")
      swarm.kill(VICTIM)

# %% [markdown]
# ## What was written down
#
# A **record** is what the islands agreed on: whose deltas went into the mean,
# and how many tokens each had trained on. Only records change θ, and each is
# committed once or not at all, so a token counts once or not at all.
#
# A record without the killed island was averaged over the others, by their
# tokens. If it was back soon enough, no record is without it: the round waited.
# What it had trained on since its last proposal is gone with it. An island that
# is left out because it is late keeps its work for the next record.

# %%
records = metrics.read(swarm.coordinator.folder / "metrics.jsonl")
records = [event for event in records if event["kind"] == "record"]
for record in records[1:]:  # record 0 is the start
  left_out = [i.name for i in swarm.islands if i.name not in record["members"]]
  print(
    f"record {record['round']:3d}  {record['tokens']:8,} tokens"
    + (f"  without {', '.join(left_out)}" if left_out else "")
  )

# %% [markdown]
# ## The curves
#
# Thin lines: the loss of each island on the text that it trains on, at its own
# parameters x. Thick line: the loss of θ on text that nobody trains on, which
# is what counts. Below: who was in which record.
#
# The thick one lies higher: nobody has trained on that text. The thin ones have
# kinks at the records, because there x becomes θ, and because inside a round an
# island can only guess how far the others are.

# %%
total_tokens = {r["round"]: r["total_tokens"] for r in records}
events = {
  island.name: metrics.read(island.folder / "metrics.jsonl")
  for island in swarm.islands
}
held_out = sorted(
  (total_tokens[event["round"]], event["eval_loss"])
  for island_events in events.values()
  for event in island_events
  if event["kind"] == "evaluation" and event["round"] in total_tokens
)

figure, (losses, members) = plt.subplots(
  2, sharex=True, height_ratios=(5, 1), figsize=(8, 5.5), layout="constrained"
)
for row, (name, island_events) in enumerate(events.items()):
  color = f"C{row}"
  steps = [event for event in island_events if event["kind"] == "step"]
  losses.plot(
    [event["position"] for event in steps],
    [event["loss"] for event in steps],
    color=color,
    linewidth=0.8,
    alpha=0.8,
    label=f"{name}, training",
  )
  inside = [r["total_tokens"] for r in records if name in r["members"]]
  members.plot(inside, [name] * len(inside), "s", color=color)
losses.plot(
  *zip(*held_out, strict=True), "ko-", markersize=4, label="θ, held out"
)
losses.set_ylabel("loss (nats a token)")
losses.legend()
if killed_at is not None:
  for axes in (losses, members):
    axes.axvline(total_tokens[killed_at], color="0.6", linestyle="--", zorder=0)
  losses.set_title(f"{VICTIM} is killed at record {killed_at}")
members.set_xlabel("tokens of the swarm")
members.xaxis.set_major_formatter("{x:,.0f}")
members.invert_yaxis()
members.margins(y=0.3)
figure.savefig(workdir / "loss.png", dpi=150)
print(f"The plot is in {workdir}/loss.png.")

# %% [markdown]
# ## One model
#
# Every island applied the same records to the same θ, with arithmetic that is
# the same to the last bit. Hashes of θ and its momentum prove it, also for the
# island that was killed.

# %%
summary = swarm.summary(run)
for name, state_hash in summary["theta_hash"].items():
  print(f"{name}  {state_hash[:32]}…")
assert len(set(summary["theta_hash"].values())) == 1, "The islands differ."
print(
  f"Held-out loss {summary['initial_eval_loss']:.2f} →"
  f" {summary['final_eval_loss']:.2f}."
  f" {summary['tokens_committed']:,} tokens count,"
  f" {summary['tokens_lost']:,} are lost."
  f" {summary['payload_reduction']:.0f} times fewer bytes than data parallelism."
)
for loss in summary["losses"]:
  print(f"Lost: {loss['tokens']:,} tokens of {loss['island']}; {loss['cause']}")

# %% [markdown]
# ## Let it write
#
# A model that has read for some minutes knows the shape of its text, Python's
# documentation, and not yet its sense. Any island can be asked: they are equal.

# %%
print(sample(swarm.islands[0].folder, "The function returns"))

# %% [markdown]
# ## Go on
#
# * `VICTIM = "coordinator"`: the islands train on meanwhile, and it goes on from
#   its ledger.
# * `"run.outer.inner_steps": 40` in `FIELDS`: a quarter of the bytes. What does
#   it cost in loss at equal tokens?
# * `"run.outer.codec": "float32"`: four times the bytes. Is the loss any better?
# * `docs/architecture.md` says how the house is built, `docs/protocol.md` what
#   happens when an island dies at the worst moment.
