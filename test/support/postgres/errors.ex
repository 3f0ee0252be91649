# What Ecto's drivers return, where they are not installed.

unless Code.ensure_loaded?(Postgrex.Error) do
  defmodule Postgrex.Error do
    @moduledoc false
    defexception [:message, :postgres]
    @impl true
    def message(%{postgres: %{code: code, message: message}}), do: "#{code}: #{message}"
  end
end

unless Code.ensure_loaded?(DBConnection.ConnectionError) do
  defmodule DBConnection.ConnectionError do
    @moduledoc false
    defexception [:message]
  end
end

unless Code.ensure_loaded?(DBConnection.EncodeError) do
  defmodule DBConnection.EncodeError do
    @moduledoc false
    defexception [:message]
  end
end
