defmodule Kith.Unlocked do
  @moduledoc false
  # The data keys of accounts that are locked under a password, while they are unlocked on this node. Elixir holds
  # references; the keys are in the native library, which forgets them when it is told to.
  #
  # A key is found by the locked one as the database has it. So whoever stores another lock, with another password or with the
  # same, has locked the account on every node. One that is only wrapped anew, under another key-encryption key, is the same lock.

  import Kith.Store.WrappedKey, only: [is_locked: 1]

  alias Kith.{Address, Error, Instance, Native}
  alias Kith.Store.Accounts

  # Each is some hundred bytes. What is beyond is the one that would have been locked next.
  @max 10_000

  @doc "For an instance that starts. The table goes with the process that made it, and the keys with the table."
  def new, do: :ets.new(__MODULE__, [:set, :public, read_concurrency: true])

  @doc "The account as native calls take it: with the unlocked key, where there is one."
  def account(%Instance{unlocked: table} = instance, {user, data_key} = account)
      when is_locked(data_key) and table != nil do
    case :ets.lookup(table, user) do
      [{^user, kept, unlocked, expires_at}] ->
        # If it is another one, either the caller has read the account before its key was stored anew here, or somebody else has
        # stored it anew.
        if expires_at > Instance.now(instance) and
             (kept == data_key or stored?(instance, user, kept) or
                rewrapped?(instance, user, {kept, unlocked}, data_key)) do
          {user, unlocked}
        else
          close(instance, user)
          account
        end

      [] ->
        account
    end
  end

  def account(_instance, account), do: account

  @doc """
  Whether calls on behalf of an account may go on: `:locked` where its key is. For those that may have nothing to open, and so would not
  notice.
  """
  @spec check(Instance.t(), {Address.user(), nil | binary}) :: :ok | {:error, Error.t()}
  def check(instance, {_, data_key} = account) when is_locked(data_key) do
    if account(instance, account) == account, do: {:error, Error.new(:locked)}, else: :ok
  end

  def check(_instance, _account), do: :ok

  defp stored?(instance, user, data_key) do
    stored =
      Instance.transaction(instance, fn repo -> {{:ok, Accounts.data_key(repo, user)}, []} end)

    stored == {:ok, data_key}
  end

  # With a key service both would have to be open, and it is locked.
  defp rewrapped?(%Instance{unlocked: table, vault: vault}, user, {kept, unlocked}, data_key) do
    same? = Native.account_same_lock(vault, user, kept, data_key) == {:ok, true}
    # Unless somebody has unlocked it meanwhile.
    if same?,
      do:
        :ets.select_replace(table, [
          {{user, kept, unlocked, :"$1"}, [],
           [{{{:const, user}, {:const, data_key}, {:const, unlocked}, :"$1"}}]}
        ])

    same?
  end

  @doc "When an account that is unlocked here will be locked, in milliseconds since 1970; nil where it is locked."
  def expires_at(instance, {user, data_key}) do
    with {^user, unlocked} when is_reference(unlocked) <- account(instance, {user, data_key}),
         [{^user, ^data_key, _, expires_at}] <- :ets.lookup(instance.unlocked, user) do
      expires_at
    else
      # Locked, or locked just now.
      _ -> nil
    end
  end

  @doc """
  Keeps a key until a time. If it is there already, that reference stays, which calls that are under way may hold, for the later of the
  two times. Another one is forgotten.
  """
  def put(instance, {user, data_key}, unlocked, expires_at) do
    before = :ets.lookup(instance.unlocked, user)
    now = Instance.now(instance)

    {kept, expires_at} =
      case before do
        [{_, ^data_key, kept, other}] when other > now -> {kept, max(other, expires_at)}
        _ -> {unlocked, expires_at}
      end

    :ets.insert(instance.unlocked, {user, data_key, kept, expires_at})

    for other <- Enum.uniq([unlocked | for({_, _, other, _} <- before, do: other)]),
        other != kept,
        do: Native.account_close(other)

    if :ets.info(instance.unlocked, :size) > @max, do: evict(instance)
    expires_at
  end

  @doc "Forgets the key of a user on this node."
  def close(%Instance{unlocked: table}, user) do
    for {_, _, unlocked, _} <- :ets.take(table, user), do: Native.account_close(unlocked)
    :ok
  end

  @doc "Forgets those whose time is over."
  def sweep(%Instance{unlocked: table} = instance) do
    now = Instance.now(instance)

    for user <- :ets.select(table, [{{:"$1", :_, :_, :"$2"}, [{:"=<", :"$2", now}], [:"$1"]}]),
        do: close(instance, user)

    :ok
  end

  defp evict(%Instance{unlocked: table} = instance) do
    {user, _} =
      :ets.foldl(
        fn {user, _, _, at}, {_, least} = found -> if at < least, do: {user, at}, else: found end,
        {nil, :infinity},
        table
      )

    close(instance, user)
  end
end
