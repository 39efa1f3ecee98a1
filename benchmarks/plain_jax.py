"""A Llama's training step as one writes it by hand, to measure against.

One jit, one dictionary of arrays, no modules, no sharding, no options: the
same mathematics as intellect_jax/inner/step.py, float32, AdamW after a clip.
It takes the parameters in the same shapes, so that both can start equal.
"""

import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax


def make_step(run: ConfigDict, scan_layers: bool):
  """A function (params, opt_state, batch) -> (params, opt_state, loss)."""
  model, inner = run.model, run.inner
  optimizer = optax.chain(
    optax.clip_by_global_norm(inner.clip_norm),
    optax.adamw(
      inner.learning_rate,
      inner.beta1,
      inner.beta2,
      inner.epsilon,
      weight_decay=inner.weight_decay,
      mask=functools.partial(
        jax.tree.map_with_path, lambda path, _: "norm" not in path[-1].key
      ),
    ),
  )

  def norm(x, scale):
    mean = jnp.mean(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean + model.norm_epsilon) * scale

  def loss_of(params, batch):
    B, L = batch["tokens"].shape
    frequency = model.rope_theta ** -(
      jnp.arange(0, model.head_dim, 2) / model.head_dim
    )
    angle = batch["positions"][:, :, None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    segments = batch["segment_ids"]
    mask = segments[:, :, None] == segments[:, None, :]
    mask &= jnp.tril(jnp.ones((L, L), bool))

    def heads(x, weight):
      return (x @ weight.reshape(model.width, -1)).reshape(
        B, L, -1, model.head_dim
      )

    def rope(x):
      a, b = jnp.split(x, 2, axis=-1)
      return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def block(x, p):
      y = norm(x, p["attention_norm"])
      y = jax.nn.dot_product_attention(
        rope(heads(y, p["query"])),
        rope(heads(y, p["key"])),
        heads(y, p["value"]),
        mask=mask[:, None],
      )
      x += y.reshape(B, L, -1) @ p["output"].reshape(-1, model.width)
      y = norm(x, p["mlp_norm"])
      x += (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
      return x, None

    x = params["embed"][batch["tokens"]]
    if scan_layers:
      x, _ = jax.lax.scan(block, x, params["blocks"])
    else:
      for i in range(model.layers):
        x, _ = block(x, jax.tree.map(lambda a, i=i: a[i], params["blocks"]))
    logits = norm(x, params["final_norm"]) @ params["unembed"]
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch["targets"]
    )
    weights = batch["weights"]
    return jnp.sum(losses * weights) / jnp.sum(weights)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, opt_state, batch):
    loss, grads = jax.value_and_grad(loss_of)(params, batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  return optimizer.init, step
