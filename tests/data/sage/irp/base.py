"""A stand-in for SAGE's sage/irp/base.py: not its code, but its contract, read off github.com/dp-web4/HRM.

Refinement starts from init_state; `refine` numbers, times and rates the very state that `step` gave it. An energy that
is 0.0 counts as missing and is computed again. The slope is |last - first| / (K + 1) over the last K + 1 states.
"""

import statistics
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class IRPState:
    x: Any
    step_idx: int = 0
    energy_val: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    timestamp: float = field(default_factory=time.time)


class IRPPlugin:
    def __init__(self, config):
        self.config = config
        self.entity_id = config.get("entity_id", f"{self.__class__.__name__}_{id(self)}")
        self.trust_weight = config.get("trust_weight", 1.0)
        self.energy_history = []
        self.time_history = []

    def init_state(self, x0, task_ctx):
        raise NotImplementedError

    def energy(self, state):
        raise NotImplementedError

    def step(self, state, noise_schedule=None):
        raise NotImplementedError

    def project(self, state):
        return state

    def _slope(self, history):
        last = history[-(self.config.get("halt_K", 3) + 1) :]
        first, final = (state.energy_val or self.energy(state) for state in (last[0], last[-1]))
        return abs(final - first) / len(last)

    def _converged(self, history):
        enough = len(history) >= self.config.get("halt_K", 3) + 1
        return enough and self._slope(history) < self.config.get("halt_eps", 1e-4)

    def halt(self, history):
        return len(history) >= self.config.get("max_iterations", 100) or self._converged(history)

    def get_halt_reason(self, history):
        if not history:
            return "no_history"
        if len(history) >= self.config.get("max_iterations", 100):
            return "max_steps"
        return "slope<eps" if self._converged(history) else "unknown"

    def compute_trust_metrics(self, history):
        if len(history) < 2:
            return {"monotonicity_ratio": 0.0, "dE_variance": float("inf"), "convergence_rate": 0.0}
        energies = [state.energy_val or self.energy(state) for state in history]
        changes = [energies[i + 1] - energies[i] for i in range(len(energies) - 1)]
        falling = [change for change in changes if change < 0]
        return {
            "monotonicity_ratio": float(len(falling) / len(changes)),
            "dE_variance": float(statistics.pvariance(changes)),
            "convergence_rate": float((energies[0] - energies[-1]) / len(history)),
        }

    def emit_telemetry(self, state, history):
        energy = state.energy_val or self.energy(state)
        several = bool(history) and len(history) > 1
        before = (history[-2].energy_val or self.energy(history[-2])) if several else None
        return {
            "entity_id": self.entity_id,
            "plugin": self.__class__.__name__.lower().replace("plugin", ""),
            "step_idx": state.step_idx,
            "E": float(energy),
            "dE": float(energy - before) if several else None,
            "steps": len(history),
            "halt_reason": self.get_halt_reason(history) if self.halt(history) else None,
            "trust": self.compute_trust_metrics(history),
            "budget": {
                "ATP_spent": float(len(history) * self.config.get("ATP_per_step", 0.1)),
                "time_ms": float((state.timestamp - history[0].timestamp) * 1000 if several else 0.0),
                "memory_mb": state.meta.get("memory_mb", 0.0),
            },
            "LRC_context": self.config.get("LRC_context", None),
        }

    def refine(self, x0, task_ctx=None, max_steps=None):
        state = self.init_state(x0, task_ctx or {})
        state.energy_val = self.energy(state)
        history = [state]
        for step in range(max_steps or self.config.get("max_iterations", 100)):
            if self.halt(history):
                break
            state = self.step(state, noise_schedule=None)
            state = self.project(state)
            state.step_idx = step + 1
            state.energy_val = self.energy(state)
            state.timestamp = time.time()
            history.append(state)
        return state, history
