defmodule Kith.Address do
  @moduledoc """
  Who a message is from or to: a user and one of their devices.

  `{"anna", 2}` means the second device of the user `"anna"`. Alone, `"anna"` means her device 1 where one device is
  asked for, and all her devices where a message is sent, a peer trusted, reset or deleted. A user is a string of 1 to 255 bytes of UTF-8 without a zero byte; a
  device is an integer from 1 to 127.
  """

  @max_user_bytes 255
  @max_device 127

  @typedoc "The application's own identifier of a person, 1 to 255 bytes."
  @type user :: String.t()

  @typedoc "The number of a device, from 1 to 127."
  @type device :: 1..127

  @typedoc "A user and a device."
  @type t :: {user, device}

  @typedoc "What functions take: a user means their device 1, or all their devices."
  @type given :: user | t

  @doc false
  defguard is_device(device) when is_integer(device) and device in 1..@max_device

  @doc """
  Returns the user and the device that an address means.

      iex> Kith.Address.new!("anna")
      {"anna", 1}

      iex> Kith.Address.new!({"anna", 2})
      {"anna", 2}

  Raises `ArgumentError` for anything else: an address is the caller's own.
  """
  @spec new!(given) :: t
  def new!(given) do
    case parse(given) do
      {:ok, address} ->
        address

      :error ->
        raise ArgumentError,
              "expected a user (1 to 255 bytes of UTF-8 without a zero byte) or {user, device} " <>
                "with a device from 1 to 127, got #{describe(given)}"
    end
  end

  @doc false
  # Whom a message is for: a user means all their devices.
  @spec recipient!(given) :: user | t
  def recipient!(given) do
    address = new!(given)
    if is_binary(given), do: given, else: address
  end

  # What is given in place of an address may be a message, so it is not printed.
  defp describe(given) when is_binary(given), do: "a binary of #{byte_size(given)} bytes"

  defp describe({user, device}) when is_binary(user),
    do:
      "{a binary of #{byte_size(user)} bytes, #{if is_integer(device), do: device, else: "no device"}}"

  defp describe(_given), do: "something else"

  @doc false
  @spec parse(term) :: {:ok, t} | :error
  def parse({user, device}) when is_device(device) do
    if user?(user), do: {:ok, {user, device}}, else: :error
  end

  def parse(user), do: if(user?(user), do: {:ok, {user, 1}}, else: :error)

  defp user?(user) do
    is_binary(user) and byte_size(user) in 1..@max_user_bytes and String.valid?(user) and
      not String.contains?(user, <<0>>)
  end
end
