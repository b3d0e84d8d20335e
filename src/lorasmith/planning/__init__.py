"""How much memory a training run will take, from shapes alone."""

from lorasmith.planning.memory_plan import MemoryPlan, OptimizerMemory, PlanSettings
from lorasmith.planning.plan import plan
from lorasmith.planning.resident import peak_resident_bytes, resident_bytes

__all__ = ["MemoryPlan", "OptimizerMemory", "PlanSettings", "peak_resident_bytes", "plan", "resident_bytes"]
