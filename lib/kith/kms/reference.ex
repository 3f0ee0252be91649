defmodule Kith.KMS.Reference do
  @moduledoc """
  A key service for development and tests.

  Its master key is in a file, the keys it made are in files beside it, each encrypted under the master key with AES-256-GCM and bound
  to its name. It is short enough to read. It is not what keys of many people should depend on: the master key is an Elixir
  term, there is no access control beyond that of the socket, no audit log and no rotation.
  """

  @behaviour Kith.KMS

  @enforce_keys [:folder, :master]
  @derive {Inspect, except: [:master]}
  defstruct [:folder, :master]

  @type t :: %__MODULE__{folder: Path.t(), master: <<_::256>>}

  @doc """
  Opens a folder, which is made with a master key when it is missing.

  Returns `{:error, sentence}` for a folder or a master key that cannot be used, or that others may read.
  """
  @spec open(Path.t()) :: {:ok, t} | {:error, String.t()}
  def open(folder) do
    path = Path.join(folder, "master.key")

    with :ok <- make(folder, path),
         {:ok, %{mode: mode}} <- File.stat(path),
         {:mode, 0} <- {:mode, Bitwise.band(mode, 0o077)},
         {:ok, text} <- File.read(path),
         {:ok, <<master::binary-32>>} <- Base.decode64(String.trim(text)) do
      {:ok, %__MODULE__{folder: folder, master: master}}
    else
      {:mode, _} -> {:error, "#{path} can be read by others: chmod 600"}
      {:error, reason} -> {:error, "#{path} cannot be used: #{:file.format_error(reason)}"}
      _ -> {:error, "#{path} is not 32 bytes in Base64"}
    end
  end

  defp make(folder, path) do
    cond do
      File.exists?(path) -> :ok
      # Its mode is its owner's to choose: it may be a folder of others too.
      File.dir?(folder) -> draw(path)
      true -> with :ok <- File.mkdir_p(folder), :ok <- File.chmod(folder, 0o700), do: draw(path)
    end
  end

  # Of two that begin at once, both have the key that is there first.
  defp draw(path) do
    write(path, Base.encode64(:crypto.strong_rand_bytes(32)), fn temporary, path ->
      linked = File.ln(temporary, path)
      File.rm(temporary)
      with {:error, :eexist} <- linked, do: :ok
    end)
  end

  # Whole, or not at all, and durable before anybody depends on it.
  defp write(path, bytes, place \\ &File.rename/2) do
    temporary = "#{path}.#{System.unique_integer([:positive])}.tmp"

    with {:ok, file} <- File.open(temporary, [:write, :exclusive, :raw]),
         :ok <- File.chmod(temporary, 0o600),
         :ok <- :file.write(file, bytes),
         :ok <- :file.sync(file),
         :ok <- :file.close(file),
         do: place.(temporary, path)
  end

  @impl true
  def create_dek_for_thread(%__MODULE__{} = state, _thread_id) do
    key_id = Base.encode16(:crypto.strong_rand_bytes(16), case: :lower)
    wrapped = seal(state.master, :crypto.strong_rand_bytes(32), key_id)

    case write(path(state, key_id), wrapped) do
      :ok ->
        {:ok, %{key_id: key_id, wrapped_dek: wrapped, kek_id: "master", kek_version: 1}}

      {:error, _} ->
        {:error, :unavailable}
    end
  end

  @impl true
  def encrypt_with_dek(%__MODULE__{} = state, key_id, plaintext, aad) do
    with {:ok, key} <- key(state, key_id), do: {:ok, seal(key, plaintext, aad), 1}
  end

  @impl true
  def decrypt_with_dek(%__MODULE__{} = state, key_id, ciphertext, aad, key_version)
      when key_version in [nil, 1] do
    with {:ok, key} <- key(state, key_id), do: open(key, ciphertext, aad)
  end

  def decrypt_with_dek(_state, _key_id, _ciphertext, _aad, _key_version), do: {:error, :not_found}

  @impl true
  def wrapped_dek(%__MODULE__{} = state, key_id) do
    # What is no name of a key here is also no name of a file elsewhere.
    with true <- key_id =~ ~r/\A[0-9a-f]{32}\z/,
         {:ok, wrapped} <- File.read(path(state, key_id)) do
      {:ok, wrapped}
    else
      {:error, reason} when reason != :enoent -> {:error, :unavailable}
      _ -> {:error, :not_found}
    end
  end

  defp key(state, key_id) do
    with {:ok, wrapped} <- wrapped_dek(state, key_id), do: open(state.master, wrapped, key_id)
  end

  defp path(state, key_id), do: Path.join(state.folder, key_id <> ".dek")

  defp seal(key, plaintext, aad) do
    nonce = :crypto.strong_rand_bytes(12)

    {ciphertext, tag} =
      :crypto.crypto_one_time_aead(:aes_256_gcm, key, nonce, plaintext, aad, true)

    nonce <> ciphertext <> tag
  end

  defp open(key, <<nonce::binary-12, rest::binary>>, aad) when byte_size(rest) >= 16 do
    size = byte_size(rest) - 16
    ciphertext = binary_part(rest, 0, size)
    tag = binary_part(rest, size, 16)

    case :crypto.crypto_one_time_aead(:aes_256_gcm, key, nonce, ciphertext, aad, tag, false) do
      :error -> {:error, :refused}
      plaintext -> {:ok, plaintext}
    end
  end

  defp open(_key, _bytes, _aad), do: {:error, :refused}
end
