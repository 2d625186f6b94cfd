"""Fine-tune and run language models from SQL, inside DuckDB."""

from duckdb import (
    DatabaseError,
    Error,
    IntegrityError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    Warning,
    apilevel,
    paramstyle,
    threadsafety,
)

from sqlft.connection import Connection, attach, connect
from sqlft.errors import (
    AlreadyExists,
    BudgetExceeded,
    Cancelled,
    CatalogError,
    DatabaseLocked,
    DataError,
    HandlerError,
    HandlerNotInstalled,
    MissingSecret,
    NotFound,
    NotSupported,
    OptionError,
    ProviderError,
    SqlftError,
    SqlftWarning,
    StatementError,
)
from sqlft.session import Tick
from sqlft.sql.parser import parse

__version__ = "0.1.0"

__all__ = [
    "AlreadyExists",
    "BudgetExceeded",
    "Cancelled",
    "CatalogError",
    "Connection",
    "DataError",
    "DatabaseError",
    "DatabaseLocked",
    "Error",
    "HandlerError",
    "HandlerNotInstalled",
    "IntegrityError",
    "InternalError",
    "MissingSecret",
    "NotFound",
    "NotSupported",
    "NotSupportedError",
    "OperationalError",
    "OptionError",
    "ProgrammingError",
    "ProviderError",
    "SqlftError",
    "SqlftWarning",
    "StatementError",
    "Tick",
    "Warning",
    "__version__",
    "apilevel",
    "attach",
    "connect",
    "paramstyle",
    "parse",
    "threadsafety",
]
