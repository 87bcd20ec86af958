"""What a site will release in a declared run: one computation for the site, which needs it, and the server, which checks it."""

from __future__ import annotations

from mammo_fed.federation.protocol.task import Declaration
from mammo_fed.privacy.events import full_batch
from mammo_fed.privacy.schedule import Schedule, plan_schedule

__all__ = ["plan_for_site", "site_sample_rate"]


def site_sample_rate(declaration: Declaration, *, public_images: int) -> float:
    """Probability with which each unit takes part in a gradient step at a site with this many (public) images."""
    if full_batch(declaration.mechanism):
        return 1.0
    return min(1.0, declaration.batch_size / (public_images + declaration.mixed_images))


def plan_for_site(declaration: Declaration, *, public_images: int, max_images_per_patient: int) -> Schedule:
    """The schedule that meets the declaration's target at a site with this many (public) images."""
    schedule = plan_schedule(
        unit=declaration.unit,
        target_epsilon=declaration.target_epsilon,
        delta=declaration.delta,
        accountant=declaration.accountant,
        rounds=declaration.rounds,
        local_steps=declaration.local_steps,
        sample_rate=site_sample_rate(declaration, public_images=public_images),
        mean_fraction=declaration.mean_fraction,
        clipping_norm=declaration.clipping_norm,
        mean_clipping_norm=declaration.mean_clipping_norm,
        max_images_per_patient=max_images_per_patient,
    )
    return schedule.shared_by(declaration.noise_shares)
