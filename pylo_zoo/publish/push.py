"""Publishes an artifact in one commit and reads it back.

The commit fails if the repository has changed since it was checked. An interrupted run can be repeated: it fills a
repository that was created but stayed empty, finds a commit whose response was lost, sets a missing tag, and does not
send files that the Hub already has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from pylo_zoo import artifact
from pylo_zoo.errors import UsageError, ZooError
from pylo_zoo.fetch import Access, Conflict, FetchError, NotFound, Unavailable
from pylo_zoo.hub.api import Hub, Refs, Snapshot
from pylo_zoo.hub.names import COMMIT, MAIN, Repository, is_revision
from pylo_zoo.publish import registry_file, secrets
from pylo_zoo.publish.plan import DERIVED, PUBLISHED, PublishPlan, prepare, without_time
from pylo_zoo.publish.records import Change, Options, Published

MARK = "pylo-zoo content: sha256:"
"""Precedes the content hash in a commit's description. It identifies a commit whose response was lost."""


def publish(
    directory: str | Path,
    repo_id: str,
    *,
    license: str | None = None,
    allow_unverified: bool = False,
    options: Options | None = None,
    dry_run: bool = False,
    access: Access | None = None,
) -> Published:
    """Publish the artifact at ``directory`` as ``repo_id``, in one commit, and read it back.

    Args:
        directory: the directory of an artifact with a passing parity report.
        repo_id: ``ORG/NAME``.
        license: of the weights, if it is unknown.
        allow_unverified: publish without a passing parity report; the card then has a warning.
        options: branch, tag, message and so on.
        dry_run: send nothing, and return the planned changes.
        access: how to reach the Hub, with ``access.token``.

    Raises:
        ZooError: the artifact cannot be published (see :func:`pylo_zoo.publish.plan.prepare`), the repository has other
            content, or the registry cannot be updated.
        Conflict: another user published at the same time. Their commit stays, and nothing was written.
        Forbidden, Unavailable, FetchError: the Hub rejects the request, or returns other bytes than were sent.
    """
    access, options = access or Access(), options or Options()
    repo = Repository.parse(repo_id)
    if repo.revision is not None:
        raise UsageError(f"{repo_id} names a revision.", "Pass ORG/NAME, and the branch with --revision.")
    token = _token(access)
    _check_options(options, token)
    plan = prepare(directory, repo, license=license, allow_unverified=allow_unverified, token=token)
    if options.registry is not None:
        registry_file.check(options.registry, plan)
    return _Push(plan, options, access).dry() if dry_run else send(plan, options, access)


def send(plan: PublishPlan, options: Options, access: Access) -> Published:
    """Publish a prepared plan; see :func:`publish` for the errors."""
    return _Push(plan, options, access).run()


def _check_options(options: Options, token: str | None) -> None:
    for option, name in (("--revision", options.branch), ("--tag", options.tag)):
        if name is not None and (COMMIT.fullmatch(name) or name.startswith("refs/")):
            raise UsageError(f"{option} {name} is a commit or a reference.", f"Choose another name with {option}.")
        if name is not None and not is_revision(name):
            raise UsageError(
                f"{option} {name[:100]!r} is not a valid name.", "Use letters, digits, and . _ - + / between them."
            )
    if options.branch is not None and options.branch == options.tag:
        raise UsageError(f"The branch and the tag have the same name {options.tag}.", "Rename one of them.")
    if leaks := list(secrets.find_secrets({"--commit-message": (options.message or "").encode()}, token)):
        raise ZooError(f"{'; '.join(leaks)}.", "Remove it, and revoke it if anyone has seen it.")
    if options.create_pr and (options.branch not in (None, MAIN) or options.tag is not None):
        raise UsageError(
            "--create-pr cannot be combined with --revision or --tag: a pull request has no tag and targets main.",
            "Leave --revision and --tag out.",
        )
    if options.create_pr and options.registry is not None:
        raise UsageError("--create-pr cannot be combined with --update-registry.", "Pin the commit after the merge.")


def _token(access: Access) -> str | None:
    from huggingface_hub import get_token

    return access.token or get_token()


class _Push:
    """One run of publishing."""

    def __init__(self, plan: PublishPlan, options: Options, access: Access) -> None:
        self.plan, self.options, self.access = plan, options, access
        self.hub = Hub(access)
        self.target = replace(plan.repo, revision=None if options.branch == MAIN else options.branch)
        self.created = False
        self.sent = False

    # --- checks ----------------------------------------------------------------------------------------------

    def dry(self) -> Published:
        """Return the planned changes without sending anything."""
        try:
            current = self._current()
            changes = self._allowed_changes(current)
        except Unavailable as error:
            self.access.notify(f"{error.message} The content of the repository is unknown.")
            return Published(self.plan, dict.fromkeys(self.plan.files, "added"), self.hub.url(self.target))
        return Published(
            self.plan,
            changes,
            self.hub.url(self.target),
            exists=current is not None,
            private=self.options.private if current is None else current.private,
        )

    def _current(self) -> Snapshot | None:
        """The branch, or the main branch if it is missing; None if the repository does not exist."""
        try:
            main = self.hub.snapshot(self.plan.repo)
        except NotFound:
            return None
        branch = self.target.revision
        if branch is None or branch not in self.hub.refs(self.plan.repo).branches:
            return main
        return self.hub.snapshot(self.target)

    def _changes(self, current: Snapshot | None) -> dict[str, Change]:
        files = current.files if current else {}
        changes: dict[str, Change] = {}
        for name in PUBLISHED:
            if name in self.plan.files:
                same = self.plan.same(name, files.get(name))
                changes[name] = "same" if same else "changed" if name in files else "added"
            elif name in files:
                changes[name] = "deleted"
        if current and self._only_time_differs(changes, current):
            return dict.fromkeys(changes, "same")
        return changes

    def _only_time_differs(self, changes: Mapping[str, Change], current: Snapshot) -> bool:
        """Whether the files differ only in the time of the parity check and in renderings of the report."""
        differing = {name for name, change in changes.items() if change != "same"}
        if differing - {artifact.PARITY, *DERIVED} or any(changes[name] != "changed" for name in differing):
            return False
        if artifact.PARITY not in differing:
            return True
        theirs = self.hub.read(current.repo.at(current.commit), artifact.PARITY)
        return without_time(theirs) == without_time(self.plan.files[artifact.PARITY])

    def _allowed_changes(self, current: Snapshot | None) -> dict[str, Change]:
        """How each file changes.

        Raises:
            ZooError: the options do not allow the changes or the tag.
        """
        changes = self._changes(current)
        if current is None:
            return changes
        if self.options.private and not current.private:
            raise ZooError(
                f"{self.plan.repo.uri} is public, and --private applies only to new repositories.",
                "Make it private on its page, or leave --private out.",
            )
        is_same = set(changes.values()) <= {"same"}
        others = sorted(name for name in current.files if name not in (".gitattributes", artifact.CARD))
        if others and not (is_same or self.options.exist_ok or self.options.create_pr):
            raise ZooError(
                f"{current.repo.uri} exists and has other content ({', '.join(others[:4])}).",
                "Publish a new version with --exist-ok, or propose one with --create-pr.",
            )
        tag, branch = self.options.tag, self.options.branch
        refs = self.hub.refs(self.plan.repo) if tag or branch else Refs({}, {}, {})
        if branch in refs.tags or tag in refs.branches:
            kind, name = ("tag", branch) if branch in refs.tags else ("branch", tag)
            raise ZooError(f"{self.plan.repo.uri} already has a {kind} {name}.", "Choose another name.")
        tagged = refs.tags.get(tag) if tag else None
        if tagged is not None and not self._is_at(tagged):
            raise ZooError(
                f"{self.plan.repo.uri} already has a tag {tag} on {tagged[:12]}.",
                "Choose another one: tags are not moved.",
            )
        return changes

    def _is_at(self, commit: str) -> bool:
        """Whether ``commit`` has exactly our content. Other users may have committed since an interrupted run."""
        return set(self._changes(self.hub.snapshot(self.plan.repo.at(commit))).values()) <= {"same"}

    # --- sending ---------------------------------------------------------------------------------------------

    def run(self) -> Published:
        """Publish: check, commit, read back, tag and pin."""
        self.hub.whoami(self.plan.repo)
        current = self._current()
        changes = self._allowed_changes(current)
        base = self._prepare_branch(current)
        if base is not current:
            changes = self._allowed_changes(base)  # another user may have created it in the meantime
        commit, pull_request = base.commit, None
        if not set(changes.values()) <= {"same"}:
            commit, pull_request = self._commit(base, changes)
        hashes = self._read_back(commit, {name for name, change in changes.items() if change != "same"})
        if self.options.tag:
            self._tag(self.options.tag, commit)
        if self.options.registry is not None:
            self._pin(self.options.registry, commit, hashes)
        return Published(
            self.plan,
            changes,
            pull_request or self.hub.url(self.plan.repo.at(commit)),
            commit,
            self.created,
            pull_request,
            not self.created,
            base.private,
            self.sent,
        )

    def _prepare_branch(self, current: Snapshot | None) -> Snapshot:
        """The branch to commit to; creates the repository and the branch if they are missing."""
        if current is None:
            try:
                self.hub.create(self.plan.repo, private=self.options.private)
                self.created = True
            except Conflict:
                self.access.notify(f"{self.plan.repo.uri} was created by another process in the meantime.")
            current = self.hub.snapshot(self.plan.repo)
        if current.repo != self.target:
            self.hub.branch(self.plan.repo, self.target.revision or MAIN)
            current = self.hub.snapshot(self.target)
        return current

    def _commit(self, base: Snapshot, changes: Mapping[str, Change]) -> tuple[str, str | None]:
        """Commit on top of ``base``. Returns the commit and the address of the pull request.

        A commit may succeed although its response is lost, so each retry first looks for it in the history.
        """
        add = {name: self.plan.files[name] for name, change in changes.items() if change in ("added", "changed")}
        delete = [name for name, change in changes.items() if change == "deleted"]
        title = self.options.message or f"Publish {self.plan.artifact.name} with pylo-zoo"
        policy, attempt = self.access.policy, 1
        while True:
            if attempt > 1 or self.options.create_pr:  # a killed run may have left an open pull request
                done = self._find(base)
                if done is not None:
                    return done
            try:
                done = self.hub.commit(
                    self.target,
                    add,
                    delete,
                    title=title,
                    message=f"{MARK}{self.plan.digest}",
                    parent=base.commit,
                    create_pr=self.options.create_pr,
                )
                self.sent = True
                return done
            except (Conflict, Unavailable) as error:
                fault = error
            # Outside the handler, so later errors do not have this one as their context.
            if isinstance(fault, Conflict):
                done = self._find(base)
                if done is not None:
                    return done
                raise self._explain_conflict(base, fault)
            attempt += 1
            wait = fault.after or 0.0
            if attempt > policy.attempts or wait > policy.longest:
                return self._find_or_raise(base, fault)
            policy.sleep(max(wait, min(policy.backoff * 2 ** (attempt - 2), policy.longest)))

    def _find_or_raise(self, base: Snapshot, error: Unavailable) -> tuple[str, str | None]:
        """The result of :meth:`_find`; raises ``error`` if the commit is not found or the Hub does not answer."""
        try:
            done = self._find(base)
        except FetchError:
            done = None
        if done is None:
            raise error from None
        return done

    def _find(self, base: Snapshot) -> tuple[str, str | None] | None:
        """An existing commit of exactly this content on top of ``base``, and its pull request, or None."""
        mark = f"{MARK}{self.plan.digest}"
        heads: dict[str, str | None] = {self.target.revision or MAIN: None}
        if self.options.create_pr:
            discussions = f"{self.hub.url(self.plan.repo)}/discussions"
            heads = {name: f"{discussions}/{name.rpartition('/')[2]}" for name in self._pulls()}
        for head, pull_request in heads.items():
            history = self.hub.history(replace(self.plan.repo, revision=head))
            above = list(takewhile(lambda commit: commit.id != base.commit, history))
            if len(above) == len(history):
                continue  # it is not based on this commit, or the branch was recreated
            for commit in above:
                if mark in commit.message or mark in commit.title:
                    return commit.id, pull_request
        return None

    def _pulls(self) -> list[str]:
        return sorted(self.hub.refs(self.plan.repo).pulls)

    def _explain_conflict(self, base: Snapshot, error: Conflict) -> Conflict:
        """``error`` with the commit that caused it, if the Hub reports one."""
        try:
            last = self.hub.history(self.target)[0]
        except (FetchError, IndexError):
            return error
        if last.id == base.commit:
            return error
        return Conflict(
            f"Another commit was made to {self.target.uri} in the meantime: {last.id[:12]}, {last.title!r}.",
            "Check it, then run this again to publish on top of it: nothing was overwritten.",
        )

    def _read_back(self, commit: str, sent: set[str]) -> dict[str, str]:
        """Download the published files and compare their hashes. Returns sha256 by name, for unsent files the Hub's."""
        repo = self.plan.repo.at(commit)
        published = self.hub.snapshot(repo)
        hashes = {}
        for name, sha256 in self.plan.hashes.items():
            if name not in published.files:
                raise self._damage(repo, name, "is missing")
            actual = hashlib.sha256(self.hub.read(repo, name)).hexdigest()
            if actual != sha256 and (name in sent or name not in (artifact.PARITY, *DERIVED)):
                raise self._damage(repo, name, f"has sha256 {actual}, not {sha256}")
            hashes[name] = actual
        return hashes

    def _damage(self, repo: Repository, name: str, what: str) -> FetchError:
        return FetchError(
            f"{repo.uri} was published, but {name} {what}.",
            "Run this again; if the error remains, report it to the Hub and do not use the repository.",
        )

    def _tag(self, tag: str, commit: str) -> None:
        if self.hub.refs(self.plan.repo).tags.get(tag) == commit:
            return
        with suppress(Conflict):
            self.hub.tag(self.plan.repo, tag, commit, f"{self.plan.artifact.name}, published with pylo-zoo")
            return
        tagged = self.hub.refs(self.plan.repo).tags.get(tag)
        if tagged != commit and not (tagged and self._is_at(tagged)):
            raise ZooError(
                f"Published as {commit}, but the tag {tag} is on {str(tagged)[:12]}.",
                "Run this again with another --tag: tags are not moved.",
            )

    def _pin(self, path: Path, commit: str, hashes: Mapping[str, str]) -> None:
        try:
            registry_file.pin(path, self.plan, commit, hashes)
        except ZooError as error:
            raise ZooError(f"Published as {commit}, but not pinned: {error.message}", error.hint) from None
