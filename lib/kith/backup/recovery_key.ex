defmodule Kith.Backup.RecoveryKey do
  @moduledoc """
  The key that opens a backup: random bits that a person keeps as words, or several people as shares.

      {:ok, key} = RecoveryKey.generate()
      {:ok, words} = RecoveryKey.words(key)
      "legal winner thank year wave sausage worth useful legal winner thank yellow"

  The key lies in the native library; this struct refers to it, and shows nothing. It is gone with the last process that holds
  it. What `words/1` and `split/2` return are Elixir strings, since people have to see them: show them, once, and keep them nowhere. They
  stay in the memory of the VM until they are collected, and so do words that somebody types.

  ## Words

  12 words are 128 bits and 24 words 256, in English and with the checksum of BIP-39. A wrong word is found by it in 15 of 16 cases, or 255 of
  256 with 24 words, and one that is not in the list always, with its place in `:position` of `Kith.Error`, counted from 1.

  ## Shares

  `split/2` makes shares for some people, of which a number gives the key back and fewer say nothing at all about it (Shamir's
  scheme over GF(2⁸)). A share is a text such as `"KITH1-AEBAG-..."`, with the set it is of, its number in it, how many are needed
  and a checksum. `combine/1` says which share is wrong.
  """

  alias Kith.{Error, Native, Telemetry, Validation}

  @enforce_keys [:reference]
  defstruct [:reference]

  @typedoc "A key. The reference is to what the native library holds."
  @type t :: %__MODULE__{reference: reference}

  @prefix "KITH1"

  @doc """
  Draws a key.

    * `:words` - 12 (default) or 24.

  Errors: `:panic`.
  """
  @spec generate(words: 12 | 24) :: {:ok, t} | {:error, Error.t()}
  def generate(options \\ []) do
    words = Validation.validate!(options, words: {:one_of, [12, 24]})[:words] || 12
    count = if words == 12, do: :twelve, else: :twenty_four
    key(call(:recovery_key_generate, [count]), &Error.new/1)
  end

  @doc """
  Returns the words, with a space between them: for the person who keeps them.

  Errors: `:panic`.
  """
  @spec words(t) :: {:ok, String.t()} | {:error, Error.t()}
  def words(%__MODULE__{reference: reference}),
    do: Error.from_native(call(:recovery_key_words, [reference]))

  @doc """
  Reads words, in any case and with any white space between them.

  Errors: `:malformed` with the `:position` of the first word that is not in the list, or without one when there are
  neither 12 nor 24; `:wrong_secret` when each word is one and the checksum is wrong: one of them is another, or they are in another
  order.
  """
  @spec parse(String.t()) :: {:ok, t} | {:error, Error.t()}
  def parse(words) do
    if not is_binary(words), do: raise(ArgumentError, "expected the words to be a string")

    key(call(:recovery_key_parse, [words]), fn
      {:malformed, at} -> Error.new(:malformed, "word #{at} is not in the list", at)
      :malformed -> Error.new(:malformed, "expected 12 or 24 words")
      :wrong_secret -> Error.new(:wrong_secret, "the checksum of the words is wrong")
      reason -> Error.new(reason)
    end)
  end

  @doc """
  Splits a key into shares.

    * `:shares` - how many, 2 to 255. Default 5.
    * `:threshold` - how many of them give the key back, from 2. Default 3.

  Each call makes another set, and shares of two sets do not go together. Errors: `:panic`.
  """
  @spec split(t, threshold: 2..255, shares: 2..255) :: {:ok, [String.t()]} | {:error, Error.t()}
  def split(%__MODULE__{reference: reference}, options \\ []) do
    schema = [threshold: {:integer, 2..255}, shares: {:integer, 2..255}]
    options = Keyword.merge([threshold: 3, shares: 5], Validation.validate!(options, schema))
    {threshold, count} = {options[:threshold], options[:shares]}

    if threshold > count,
      do: raise(ArgumentError, "expected :threshold to be at most :shares, #{count}")

    with {:ok, shares} <-
           Error.from_native(call(:recovery_key_split, [reference, threshold, count])),
         do: {:ok, Enum.map(shares, &text/1)}
  end

  @doc """
  Gives a key back from shares: as many as are needed or more, in any order, in any case, with or without the hyphens.

  Errors, the first three with the `:position` of the share in the list:

    * `:malformed` - the share is damaged, or none;
    * `:wrong_secret` - it is of another set than the first. Without a position: the shares are whole and give no key, as somebody has
      made one up;
    * `:duplicate` - it is there twice;
    * `:too_few` - there are fewer than are needed.
  """
  @spec combine([String.t()]) :: {:ok, t} | {:error, Error.t()}
  def combine(shares) do
    if not (is_list(shares) and Enum.all?(shares, &is_binary/1)),
      do: raise(ArgumentError, "expected a list of shares, which are strings")

    key(call(:recovery_key_combine, [Enum.map(shares, &bytes/1)]), fn
      {:malformed, at} -> Error.new(:malformed, "share #{at} is damaged", at)
      {:wrong_secret, at} -> Error.new(:wrong_secret, "share #{at} is of another set", at)
      {:duplicate, at} -> Error.new(:duplicate, "share #{at} is there twice", at)
      {:too_few, needed} -> Error.new(:too_few, "#{needed} are needed")
      :wrong_secret -> Error.new(:wrong_secret, "the shares give no key together")
      reason -> Error.new(reason)
    end)
  end

  # Base32 without padding in groups of five, in which nobody mistakes a digit for a letter.
  defp text(share) do
    groups =
      for <<group::binary-size(5) <- padded(Base.encode32(share, padding: false))>>, do: group

    Enum.join([@prefix | groups], "-") |> String.trim_trailing("=")
  end

  defp padded(text), do: text <> String.duplicate("=", rem(5 - rem(byte_size(text), 5), 5))

  # What is no text of a share is no share there either.
  defp bytes(text) do
    compact = text |> String.upcase(:ascii) |> String.replace(~r/[\s-]/, "")

    with @prefix <> encoded <- compact,
         true <- byte_size(encoded) <= 256,
         letters = for(<<letter <- encoded>>, into: "", do: <<mistaken(letter)>>),
         {:ok, bytes} <- Base.decode32(letters, padding: false),
         # The bits that are left over in the last letter are part of what was written.
         ^letters <- Base.encode32(bytes, padding: false) do
      bytes
    else
      _none -> ""
    end
  end

  defp mistaken(?0), do: ?O
  defp mistaken(?1), do: ?I
  defp mistaken(?8), do: ?B
  defp mistaken(letter), do: letter

  defp key({:ok, reference}, _explain), do: {:ok, %__MODULE__{reference: reference}}
  defp key({:error, reason}, explain), do: {:error, explain.(reason)}

  defp call(function, arguments),
    do: Native |> apply(function, arguments) |> Telemetry.watch(nil, function)

  defimpl Inspect do
    def inspect(_key, _options), do: "#Kith.Backup.RecoveryKey<>"
  end
end
