"""A device `other`: its tensors lie in main memory, and refuse to meet those of the CPU where tensors on a GPU do.

Code that forgets to move something runs on a CPU and stops on a GPU; here it stops without one. What this cannot show:
how a GPU rounds, how fast it is, and which kernels it lacks.

    with OtherDevice():
        torch.zeros(3, device="other") + torch.ones(3)  # raises MixedDevices

Importing this registers the device for the whole process and for good. So it belongs in a process of its own, before
the first backward pass there: that is when autograd counts the devices.
"""

from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "other"
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
MODULE = SimpleNamespace(  # what torch asks of the module of a device
    current_device=lambda: 0, device_count=lambda: 1, is_available=lambda: True,
    manual_seed_all=lambda seed: None, _is_in_bad_fork=lambda: False,
    get_amp_supported_dtype=lambda: [torch.bfloat16],
)  # fmt: skip
backend_registration._setup_privateuseone_for_python_backend(NAME, MODULE)


class MixedDevices(RuntimeError):
    """What a GPU would have refused."""


class OtherTensor(Tensor):
    """A tensor that says it is elsewhere; `inner` holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __new__(cls, inner):
        form = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        with torch.inference_mode(inner.is_inference()):  # a view of an ordinary tensor stays one
            made = Tensor._make_wrapper_subclass(cls, inner.shape, device=torch.device(NAME, 0), **form)
        made.inner = inner
        return made

    def numpy(self, **_):
        raise MixedDevices(f"NumPy cannot read what lies on {NAME}")

    def tolist(self):
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})


# `torch.tensor` and lists as indices move their numbers past every mode and subclass, with these two kernels.


@torch.library.impl("aten::empty_strided", "PrivateUse1")
def empty_strided(size, stride, dtype=None, **_):
    return OtherTensor(torch.empty_strided(size, stride, dtype=dtype))


@torch.library.impl("aten::_copy_from", "PrivateUse1")
def copy_from(source, to, non_blocking=False):
    to.inner.copy_(source)
    return to


class OtherDevice(TorchDispatchMode):
    """While entered, tensors can be made on the device. Calls on tensors that are there already need no mode."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.is_inference_mode_enabled():  # where a call that is made of others arrives in one piece
            with self:
                made = func.decompose(*args, **kwargs or {})
            if made is not NotImplemented:
                return made
        return call(func, args, kwargs or {})


def call(func, args, kwargs):
    """Compute on the CPU what was asked of either device. MixedDevices if it was asked of both."""
    leaves, said = tree_leaves((args, kwargs)), kwargs.get("device")
    ours = {id(x.inner): x for x in leaves if isinstance(x, OtherTensor)}
    if ours:
        check(func, args, [x for x in leaves if is_plain(x)])
    there = bool(ours) if said is None else torch.device(said).type == NAME
    if func is aten.copy_.default:
        there = not is_plain(args[0])
    if there and any(isinstance(x, torch.Generator) for x in leaves):
        raise MixedDevices(f"{func}: a generator of the CPU draws nothing on {NAME}")
    args, kwargs = tree_map(lambda x: x.inner if isinstance(x, OtherTensor) else x, (args, kwargs))
    made = func(*args, **kwargs | ({"device": torch.device("cpu")} if there and said is not None else {}))
    if not there:
        return made
    # What was written in place is the very tensor that was given.
    return tree_map(lambda x: ours[id(x)] if id(x) in ours else OtherTensor(x) if isinstance(x, Tensor) else x, made)


def is_plain(x):
    return isinstance(x, Tensor) and not isinstance(x, OtherTensor)


def check(func, args, plain):
    """MixedDevices unless a GPU takes these tensors of the CPU beside its own."""
    first = isinstance(args[0], OtherTensor)
    if func in COPIES:
        return
    if func in INDEXING and first:  # indices, args[1], may lie on either device
        plain = [x for x in args[2:] if is_plain(x) and x.ndim]
    elif torch.Tag.pointwise in func.tags and (first or not func._schema.is_mutable):
        plain = [x for x in plain if x.ndim]  # a single number goes wherever the others are
    if plain:
        raise MixedDevices(f"{func} on {NAME} meets tensors of the CPU of shapes {[tuple(x.shape) for x in plain]}")
