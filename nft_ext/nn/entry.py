"""The model given to `chips`, at its entry: repeats the inputs for several chips, or runs the chips one by one.

A pass holds several chips only after the check (nft_ext/nn/chip_check.py). The result of a model that mixes chips is
made of one pass per chip. So both ways give the same result, up to the rounding of the products.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nft_ext._common.checks import fail
from nft_ext.nn import chip_check, recomputation
from nft_ext.nn.base import ANYWHERE, NoisyLayer, changed_weights, refuse_thread
from nft_ext.nn.chip_inputs import check_chip_major, combined, of_chips, repeated
from nft_ext.nn.compiled_check import checked, number_of
from nft_ext.nn.structure import modules_of


class _Call:
    """One call of the model: its arguments before any hook, and what restores the layers after a pass per chip."""

    def __init__(self, args: tuple, kwargs: dict) -> None:
        self.args, self.kwargs = args, kwargs
        self.states: dict[NoisyLayer, tuple] | None = None
        self.several = False  # whether the pass holds several chips
        self.warns = False  # whether to say that it does not

    def restore(self) -> None:
        """Gives the layers all chips again."""
        for layer, state in (self.states or {}).items():
            layer.set_noise_state(state)


class Entry:
    """Hooks on the model of one `chips` context with several chips.

    A layer's attribute _entry names the entry of the innermost such context. An entry that no layer names does nothing.
    Attributes are plain values, because a compiled graph guards on them and copies of the model take them along.

    Args:
        count: chips, at least two.
        repeat: False if the inputs are chip-major.
        outer: the entries that the layers had before.
        quiet: whether a model that mixes chips is no reason for a warning.
        owner: the thread that is inside the context. A copy of the model runs in any thread.
    """

    def __init__(
        self, count: int, repeat: bool, outer: Sequence[Entry] = (), quiet: bool = False, owner: int = ANYWHERE
    ) -> None:
        self.count, self.repeat, self.outer, self.quiet = count, repeat, outer, quiet
        self.owner = owner
        self.calls: list[_Call] = []  # the model's forwards in progress
        self.chosen: list[int] | None = None  # the chips of the next call, which this entry makes itself
        self.reason: str | None = None  # why the last call ran one chip per pass
        self._number = 0  # of the hook `end`
        self._model = ""  # the model's number for compiled graphs

    def __reduce__(self) -> tuple:
        return Entry, (self.count, self.repeat)

    @contextlib.contextmanager
    def at(self, model: nn.Module) -> Iterator[None]:
        """Context with the hooks on `model`."""
        handles = [
            model.register_forward_pre_hook(self.begin, with_kwargs=True, prepend=True),
            model.register_forward_pre_hook(self.prepare, with_kwargs=True),
        ]
        # Not register_forward_hook: a compiled graph guards on the number of a hook that is always called, so every
        # context would compile the model again.
        self._number = min(0, *model._forward_hooks, 0) - 1
        flags = (model._forward_hooks_with_kwargs, model._forward_hooks_always_called)
        model._forward_hooks[self._number] = self.end
        for table in flags:
            table[self._number] = True
        self._model = number_of(model)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for table in (model._forward_hooks, *flags):
                table.pop(self._number, None)

    # ---- hooks

    def begin(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        """The first hook: marks that the model runs."""
        if torch.compiler.is_compiling() or self._elsewhere(model):
            return
        self.calls.append(_Call(args, kwargs))

    def prepare(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """The last hook before the forward: the inputs for all chips, or for the first one of a pass per chip."""
        if torch.compiler.is_compiling():
            return self._compiled(model, args, kwargs)
        if self._elsewhere(model):
            return None
        chosen, self.chosen = self.chosen, None
        if chosen is not None:
            return self._inputs((args, kwargs), chosen)
        modules = modules_of(model)
        layers = self._layers(modules)
        if len(self.calls) > 1:
            self._drop_interrupted()
        if not layers or len(self.calls) > 1:  # the model's calls of itself have all chips already
            return None
        self._refuse_mixtures(model, modules)
        if not self.repeat:
            check_chip_major((args, kwargs), self.count)
        for layer in layers:
            recomputation.note_forward(layer, True)
        recomputation.note_entry(lambda: again(model, layers, self.count, self.repeat), True)
        self.reason = self._why_apart(model, modules, layers, (args, kwargs))
        call = self.calls[-1]
        call.several = self.reason is None
        if call.several:
            return self._inputs((args, kwargs), range(self.count))
        call.states = {layer: layer.noise_state() for layer in layers}
        # Behind the user's hooks, which see one chip at a time.
        model._forward_hooks[self._number] = model._forward_hooks.pop(self._number)
        self._select(call.states, 0)
        return self._inputs((args, kwargs), [0])

    def end(self, model: nn.Module, args: tuple, kwargs: dict, result: Any) -> Any:
        """The last hook after the forward: runs the other chips of a pass per chip. Runs after errors too."""
        if torch.compiler.is_compiling() or not self.calls or self.owner not in (ANYWHERE, threading.get_ident()):
            return None
        call = self.calls[-1]
        try:
            if call.states is None or result is None:
                return None
            results = [result]
            for chip in range(1, self.count):
                self._select(call.states, chip)
                results.append(self._run(model, call, [chip]))
            result = combined(results)
            if call.warns:  # after the forward, which may have an error of its own
                _warn(model, self.reason)
            return result
        finally:
            self.calls.pop().restore()

    # ---- parts

    def _layers(self, modules: list[nn.Module]) -> list[NoisyLayer]:
        """The layers that run on the chips of this entry."""
        return [m for m in modules if isinstance(m, NoisyLayer) and m._entry is self]

    def _inputs(self, given: tuple[tuple, dict], chosen: Sequence[int]) -> tuple[tuple, dict]:
        if self.repeat:
            return repeated(given[0], len(chosen)), repeated(given[1], len(chosen))
        if len(chosen) == self.count:
            return given
        return of_chips(given[0], self.count, chosen), of_chips(given[1], self.count, chosen)

    def _run(self, model: nn.Module, call: _Call, chosen: list[int]) -> Any:
        """The model's result for the chips `chosen`, from the arguments before any hook: hooks run again."""
        self.chosen = chosen
        try:
            return model(*call.args, **call.kwargs)
        finally:
            self.chosen = None

    def _select(self, states: dict[NoisyLayer, tuple], chip: int) -> None:
        for layer, (table, key, programmed, *rest) in states.items():
            one = slice(chip, chip + 1)
            weights = changed_weights(programmed, itemgetter(one))
            layer.set_noise_state((table, key[one], weights, *rest))

    def _why_apart(self, model: nn.Module, modules: list, layers: list[NoisyLayer], given: Any) -> str | None:
        found = chip_check.known(model, modules)
        kind = chip_check.kind_of(modules, given)
        if kind in found:
            return found[kind]
        if chip_check.impossible(layers):
            return "no check can run here"  # one chip per pass is always right
        call = self.calls[-1]
        reason, lasting = chip_check.why_apart(lambda chosen: self._run(model, call, chosen), modules, layers)
        if lasting:
            found[kind] = reason
        call.warns = reason is not None and not self.quiet
        return reason

    def _refuse_mixtures(self, model: nn.Module, modules: list[nn.Module]) -> None:
        if any(call.several for entry in self.outer if not entry.is_on(model) for call in entry.calls):
            rule = "must be one chip for a part of a model that runs on several chips itself"
            fail("draws", rule, f"{self.count} chips for {type(model).__name__}")
        refuse_batch_statistics(model, modules, self.count)

    def _compiled(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The inputs inside a compiled graph."""
        modules = list(model.modules())
        key = next((m._key for m in modules if isinstance(m, NoisyLayer) and m._entry is self), None)
        if key is None:
            return args, kwargs
        count = key.shape[0]
        refuse_batch_statistics(model, modules, count)
        if not self.repeat:
            check_chip_major((args, kwargs), count)
        if not torch.compiler.is_exporting():
            args, kwargs = checked(self._model, args, kwargs, 1 if self.repeat else count)
        if not self.repeat:
            return args, kwargs
        return repeated(args, count), repeated(kwargs, count)

    # ---- calls from outside

    def _elsewhere(self, model: nn.Module) -> bool:
        """Whether the call is none of this entry's: a replica's, or in a thread in which autograd recomputes.

        Raises:
            ValueError: a replica, whose inputs are a part of the batch.
            RuntimeError: another thread calls the model.
        """
        if getattr(model, "_is_replica", False):
            if self._layers(modules_of(model)):
                rule = f"must be the DataParallel itself for {self.count} chips, because it splits the batch"
                fail("model", rule, "a module inside it")
            return True
        if self.owner in (ANYWHERE, threading.get_ident()):
            return False
        if torch._C._current_graph_task_id() == -1:
            refuse_thread("model")
        return True

    def _drop_interrupted(self) -> None:
        """Drops calls that ended without hooks, as a KeyboardInterrupt ends them."""
        if sum(self.is_on(model) for model in _models_in_progress()) <= 1:
            for call in self.calls[:-1]:
                call.restore()
            del self.calls[:-1]

    def refuse_outside(self, layer: NoisyLayer) -> None:
        """Refuses a layer's forward that did not come through the model: its rows would be split among the chips.

        Raises:
            RuntimeError: the layer was called past the model.
        """
        if torch._C._current_graph_task_id() != -1:
            return  # activation checkpointing recomputes a part that the model has called
        if any(map(self.is_on, _models_in_progress())):
            return  # parts of a compiled model may run without a graph
        fail(
            layer.name or type(layer).__name__,
            f"must be reached through a call of the model given to nft_ext.chips, because {self.count} chips share a "
            "pass. Call that model, or give nft_ext.chips the part that you call",
            "a call past it",
            RuntimeError,
        )

    def is_on(self, model: nn.Module) -> bool:
        """Whether `model` has the hooks of this entry."""
        return any(getattr(hook, "__self__", None) is self for hook in model._forward_pre_hooks.values())


def _warn(model: nn.Module, reason: str | None) -> None:
    warnings.warn(
        f"chips: {type(model).__name__} runs one chip per pass, because {reason}. The results are right, but slower. "
        "Chips share a pass if dim 0 of every input and result is the batch.",
        UserWarning,
        stacklevel=4,
    )


def _models_in_progress() -> Iterator[nn.Module]:
    """The modules whose calls are in progress in this thread, innermost first. Slow."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_name
        if name == "_call_impl" or name.startswith("torch_dynamo_resume_in__call_impl"):
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module):
                yield module
        frame = frame.f_back


def refuse_batch_statistics(model: nn.Module, modules: list[nn.Module], count: int) -> None:
    """Refuses BatchNorm with batch statistics for several chips.

    Raises:
        ValueError: such a module.
    """
    for m in modules:
        if isinstance(m, _BatchNorm) and (m.training or m.running_mean is None):
            name = next(name for name, other in model.named_modules() if other is m)
            fail(
                name or type(m).__name__,
                f"must use its running statistics for {count} chips in one pass, because batch statistics mix chips. "
                "Call model.eval(), or use one draw per context",
                "training mode" if m.training else "track_running_stats=False",
            )


@contextlib.contextmanager
def again(model: nn.Module, layers: list[NoisyLayer], count: int, repeat: bool) -> Iterator[None]:
    """Context for a forward that a backward runs again, after its `chips` context may have ended.

    Args:
        model: the model given to `chips`.
        layers: its layers with several chips.
        count, repeat: as of the entry.
    """
    entry = Entry(count, repeat, quiet=True)
    before = [layer._entry for layer in layers]
    for layer in layers:
        layer.__dict__["_entry"] = entry
    try:
        with entry.at(model):
            yield
    finally:
        for layer, past in zip(layers, before):
            layer.__dict__["_entry"] = past
