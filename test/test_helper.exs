# Without PostgreSQL .ci/test leaves these out, and says so.
if System.get_env("KITH_WITHOUT_POSTGRES") == "1", do: ExUnit.configure(exclude: [:postgres])
ExUnit.start()
