"""What we ask of Kaggle, written by the message types of its own package, which refuse a name that they do not know.

Apart, because that package takes most of a second to import: only who uses Kaggle waits for it.
"""
# The package has no stubs, and its source says enough.
# pyright: reportMissingTypeStubs=false

from typing import Any, cast

from kagglesdk.kaggle_object import KaggleObject
from kagglesdk.kernels.types.kernels_api_service import (
    ApiGetAcceleratorQuotaStatisticsRequest,
    ApiGetKernelRequest,
    ApiGetKernelSessionStatusRequest,
    ApiListKernelSessionOutputRequest,
    ApiListKernelsRequest,
    ApiSaveKernelRequest,
)
from kagglesdk.kernels.types.kernels_enums import KernelExecutionType, KernelsListSortType, KernelsListViewType
from kagglesdk.security.types.oauth_service import IntrospectTokenRequest

_PAGE_SIZE = 100


def _body(request: KaggleObject) -> dict[str, Any]:
    return cast("dict[str, Any]", request.to_dict())  # untyped there, JSON's types in fact


class KaggleRequests:
    """The bodies of our requests."""

    def save_kernel(
        self, ref: str, title: str, script: str, *, shape: str, datasets: list[str], session_s: int
    ) -> dict[str, Any]:
        """A new version of a private script, and its run."""
        request = ApiSaveKernelRequest()
        request.slug = ref
        request.new_title = title
        request.text = script
        request.language = "python"
        request.kernel_type = "script"
        request.is_private = True
        request.enable_internet = True
        request.machine_shape = shape
        request.dataset_data_sources = datasets
        request.session_timeout_seconds = session_s
        request.kernel_execution_type = KernelExecutionType.SAVE_AND_RUN_ALL
        return _body(request)

    def session_status(self, owner: str, slug: str) -> dict[str, Any]:
        """How the newest session of a kernel is."""
        request = ApiGetKernelSessionStatusRequest()
        request.user_name, request.kernel_slug = owner, slug
        return _body(request)

    def session_output(self, owner: str, slug: str) -> dict[str, Any]:
        """The log and the files of a session that has ended."""
        request = ApiListKernelSessionOutputRequest()
        request.user_name, request.kernel_slug = owner, slug
        return _body(request)

    def kernel(self, owner: str, slug: str) -> dict[str, Any]:
        """What is known about a kernel."""
        request = ApiGetKernelRequest()
        request.user_name, request.kernel_slug = owner, slug
        return _body(request)

    def own_kernels(self, page_token: str) -> dict[str, Any]:
        """Kernels of whoever asks, those that ran last first."""
        request = ApiListKernelsRequest()
        request.group = KernelsListViewType.PROFILE
        request.sort_by = KernelsListSortType.DATE_RUN
        request.page_size = _PAGE_SIZE
        if page_token:
            request.page_token = page_token
        return _body(request)

    def quota(self) -> dict[str, Any]:
        """The account's hours."""
        return _body(ApiGetAcceleratorQuotaStatisticsRequest())

    def introspection(self, token: str) -> dict[str, Any]:
        """Whose token it is."""
        request = IntrospectTokenRequest()
        request.token = token
        return _body(request)
