"""Pass the loss to VeLO, Celo and CeloAdam inside training loops that call ``optimizer.step()`` themselves.

- :class:`~pylo_zoo.integrations.transformers.TrainerMixin` for Hugging Face's ``Trainer``.
- :class:`~pylo_zoo.integrations.accelerate.StepLoss` for a loop with Accelerate.
- :class:`~pylo_zoo.integrations.lightning.LossCallback` for Lightning.

Each averages the losses of a step's micro-batches and of all processes. None of the three libraries is imported here.
"""
