"""Which mesh axis shares which axis of the model: one table.

An island's mesh has two axes. `fsdp` splits the batch and, between uses, every
parameter (ZeRO-3); `tensor` splits the heads and hidden units of each matrix
product (Megatron). Change the table to change the layout; XLA's partitioner
(jit with shardings; once called pjit) derives the communication.
"""

from __future__ import annotations

from collections.abc import Sequence
import itertools
import math
from typing import TYPE_CHECKING, Any, cast

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from intellect_jax.errors import UserError

if TYPE_CHECKING:
  from intellect_jax.model.llama import LlamaConfig

_AXES = ("fsdp", "tensor")
# Auto, because make_mesh's own default is Explicit, where every gather and
# contraction of a split axis has to name its result's sharding.
_TYPES = (AxisType.Auto,) * 2

# Logical axis (a field of LlamaConfig, or "batch") -> mesh axis.
RULES: dict[str, str | None] = {
  "batch": "fsdp",
  "width": "fsdp",
  "vocab_size": "tensor",
  "heads": "tensor",
  "kv_heads": "tensor",
  "ffn": "tensor",
  "head_dim": None,
  "lora_rank": None,
  "layers": None,
}


def make_mesh(
  fsdp: int = -1,
  tensor: int = 1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """An fsdp x tensor mesh over all `devices` (default: all of this process).

  Raises:
    UserError: if fsdp x tensor is not the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh(
    _sizes(fsdp, tensor, len(devices)), _AXES, _TYPES, devices=devices
  )


def abstract_mesh(fsdp: int, tensor: int, devices: int) -> Mesh:
  """The same over devices that are not there, to plan with; raises as well.

  It serves where a mesh gives shapes and shardings, and for tracing.
  """
  sizes = _sizes(fsdp, tensor, devices)
  return cast(Mesh, AbstractMesh(sizes, _AXES, _TYPES))


def _sizes(fsdp: int, tensor: int, devices: int) -> tuple[int, int]:
  if fsdp == -1:
    fsdp = max(1, devices // tensor)
  if fsdp * tensor != devices:
    raise UserError(
      f"island.mesh.fsdp={fsdp} x island.mesh.tensor={tensor} is"
      f" {fsdp * tensor} devices, but this island has {devices}. Set"
      " fsdp=-1 to take all that are left, and tensor to a divisor of the"
      " number of devices (on CPUs: island.cpu_devices)."
    )
  return fsdp, tensor


def spec(*axes: str | None) -> P:
  """The PartitionSpec of an array with these logical axes."""
  mesh_axes = [axis and RULES[axis] for axis in axes]
  used = [axis for axis in mesh_axes if axis]
  assert len(used) == len(set(used)), f"{axes} use a mesh axis twice"
  return P(*mesh_axes)


def param_shardings(c: LlamaConfig, mesh: Mesh | AbstractMesh):
  """A tree like the parameters, of NamedShardings.

  Raises:
    UserError: if the mesh does not divide a dimension that it splits.
  """

  def sharding(axes: P) -> NamedSharding:
    for axis in axes:
      mesh_axis = RULES[axis]
      if mesh_axis and getattr(c, axis) % mesh.shape[mesh_axis]:
        raise UserError(
          f"run.model.{axis} is {getattr(c, axis)}, which does not divide"
          f" among the {mesh.shape[mesh_axis]} devices of"
          f" island.mesh.{mesh_axis}. Choose an island.mesh.{mesh_axis} that"
          f" divides run.model.{axis}."
        )
    return NamedSharding(mesh, spec(*axes))

  return jax.tree.map(sharding, c.parameter_axes())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Of everything BxL: sequences over fsdp."""
  return NamedSharding(mesh, spec("batch"))


def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, int]:
  """[first, last): the sequences of a batch that this process's devices need.

  Raises:
    UserError: if they are not neighbours.
  """
  places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  slices = [place[0] for place in places.values() if place is not None]
  ordered = sorted({rows.indices(batch_size)[:2] for rows in slices})
  for (_, stop), (start, _) in itertools.pairwise(ordered):
    if start != stop:
      raise UserError(
        "The devices of a host are no neighbours on the mesh's fsdp axis, so"
        " that no run of a batch is theirs. Choose island.mesh.tensor so that"
        " it divides the devices of each host."
      )
  return ordered[0][0], ordered[-1][1]


def local_mesh(mesh: Mesh) -> Mesh:
  """Such a mesh of this process's own devices; `mesh`, if they are all."""
  local, tensor = mesh.local_devices, mesh.shape["tensor"]
  if len(local) == mesh.size:
    return mesh
  return make_mesh(tensor=math.gcd(tensor, len(local)), devices=local)


def check_batch(name: str, sequences: int, mesh: Mesh) -> None:
  """Raises UserError unless `sequences` divide among the fsdp axis."""
  if sequences % mesh.shape["fsdp"]:
    raise UserError(
      f"{name} is {sequences} sequences, which do not divide among the"
      f" {mesh.shape['fsdp']} devices of island.mesh.fsdp. Make it a multiple"
      f" of {mesh.shape['fsdp']}, or use fewer devices."
    )


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Pins the layout of an intermediate value; nothing without a mesh."""
  if math.prod(jax.sharding.get_abstract_mesh().axis_sizes) <= 1:
    return x
  return jax.lax.with_sharding_constraint(x, spec(*axes))
