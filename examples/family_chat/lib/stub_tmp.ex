defmodule Kith.Password do
  def hash(p), do: {:ok, "stub" <> Base.encode16(:crypto.hash(:sha256, p))}
  def verify(p, h), do: {:ok, elem(hash(p), 1) == h}
  def dummy_verify, do: false
end

defmodule Kith.Monitor do
  def child_spec(_), do: %{id: __MODULE__, start: {__MODULE__, :start_link, []}}
  def start_link, do: :ignore
end
