"""Which sites may come: one public key for each, in files that a running server looks at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mammo_fed.common.private_files import write_atomically
from mammo_fed.errors import InvalidSetting
from mammo_fed.federation.identity.keys import SiteKey, check_site_name, read_public_key
from mammo_fed.privacy.names import MOST_COUNT

__all__ = ["RegisteredSite", "Registry"]


@dataclass(frozen=True, kw_only=True)
class RegisteredSite:
    """A site that may come: its name, its public key, and how many images it may declare; None is any number."""

    name: str
    key: SiteKey
    max_images: int | None = None


@dataclass(frozen=True, kw_only=True)
class Registry:
    """The sites that may come, as the files NAME.pub of a folder, and keys that may never come again.

    Beside a key may lie NAME.max-images, the largest number of images that the site may declare.

    Attributes:
      sites: folder of the registered keys; the truth about who may come.
      revoked: folder of keys that were replaced or revoked.
    """

    sites: Path
    revoked: Path

    def read(self) -> tuple[RegisteredSite, ...]:
        """Sites that may come, by name.

        Raises:
          InvalidSetting: If a file is not a site's public key.
        """
        found = sorted(path for path in self.sites.glob("*.pub") if not path.name.startswith("."))
        return tuple(
            RegisteredSite(
                name=check_site_name(path.stem, option=str(path)),
                key=read_public_key(path),
                max_images=_read_limit(self._limit_of(path.stem)),
            )
            for path in found
        )

    def register(self, name: str, key: SiteKey, *, replace: bool, max_images: int | None = None) -> bool:
        """Let the site `name` come with `key`; whether that changed anything.

        Args:
          name: of the site.
          key: its public key.
          replace: whether the site has rotated its key: the one that it has here is then revoked.
          max_images: largest number of images that it may declare, >= 1; None leaves what is set, which is any number at first.

        Raises:
          InvalidSetting: If `max_images` is not from 1 to 1e9, the key is another site's or was revoked, or the site has
            another key and `replace` is not given.
        """
        check_site_name(name, option="--name")
        if max_images is not None and not 1 <= max_images <= MOST_COUNT:
            raise InvalidSetting(
                f"--max-images={max_images} must be from 1 to {MOST_COUNT}; give what the site may declare at most"
            )
        if any(key == read_public_key(path) for path in self.revoked.glob("*.pub")):
            raise InvalidSetting(
                f"the key {key.fingerprint} was revoked or replaced, and must not come back; the site makes a new one with "
                "site-client rotate-key"
            )
        present = {site.name: site.key for site in self.read()}
        owner = next((site for site, other in present.items() if other == key), None)
        if owner == name:
            return self._limit(name, max_images)
        if owner is not None:
            raise InvalidSetting(f"the key {key.fingerprint} is already registered for {owner}; one key is one site")
        if name in present and not replace:
            raise InvalidSetting(
                f"{name} is registered with another key, {present[name].fingerprint}; check with the site that the new one, "
                f"{key.fingerprint}, is its own, then give --replace"
            )
        if name in present:
            self._retire(name)
        elif max_images is None:
            # Whoever had the name before had a limit of its own.
            self._limit_of(name).unlink(missing_ok=True)
        # The limit first: nobody with one may come without it.
        self._limit(name, max_images)
        write_atomically(self.sites / f"{name}.pub", key.file_content(name).decode())
        return True

    def revoke(self, name: str) -> SiteKey:
        """Let the site `name` come no more, and its key never again; the key.

        Raises:
          InvalidSetting: If no such site is registered.
        """
        present = {site.name: site.key for site in self.read()}
        if name not in present:
            raise InvalidSetting(f"NAME={name} must be a registered site; there are {', '.join(present) or 'none'}")
        self._retire(name)
        self._limit_of(name).unlink(missing_ok=True)
        return present[name]

    def _limit_of(self, name: str) -> Path:
        return self.sites / f"{name}.max-images"

    def _limit(self, name: str, max_images: int | None) -> bool:
        """Set how many images a site may declare; whether that changed anything."""
        if max_images is None or max_images == _read_limit(self._limit_of(name)):
            return False
        write_atomically(self._limit_of(name), f"{max_images}\n")
        return True

    def _retire(self, name: str) -> None:
        """Take a key out of `sites` for good."""
        self.revoked.mkdir(mode=0o700, exist_ok=True)
        path = self.sites / f"{name}.pub"
        path.replace(self.revoked / f"{name}-{path.stat().st_mtime_ns}.pub")


def _read_limit(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"{path} cannot be read ({type(error).__name__}); register the site with --max-images") from error
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise InvalidSetting(f"{path} must hold one whole number, at least 1; register the site with --max-images")
    return int(text)
