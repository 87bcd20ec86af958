"""mammo-fed audit: try to refute the privacy claim of a finished run by repeating what one of its sites did."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mammo_fed.audit.canaries import CANARIES, CanaryKind
from mammo_fed.audit.claims import Claim
from mammo_fed.audit.membership import Federation, Membership, Model, Population, infer_membership
from mammo_fed.audit.report import AuditReport, audit_subject
from mammo_fed.audit.subject import Subject
from mammo_fed.audit.trials import Progress as Told
from mammo_fed.errors import DataError, InvalidSetting, PolicyRefused

__all__ = ["add_audit", "audit_run"]
