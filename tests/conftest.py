import pytest


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small are slower on many threads, far slower on a busy machine."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
