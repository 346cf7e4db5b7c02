/* SPDX-License-Identifier: Apache-2.0
   Copyright The kvtrie authors

   Waiting for a Pending page on a 32-bit epoch word: a futex, a publisher with a store buffer (x86-TSO),
   and the publisher's death at any step.

   Rules (DESIGN.md): 16 waiting, 14 (the reaper bumps and wakes every epoch word). Claim: nobody is left
   asleep. No time-out is modelled: what a time-out would heal is an error here.

   epoch: bit 0 = somebody waits, the rest counts.
   Waiter:    e = fetch_or(epoch,1) | 1; read the page again; futex_wait(epoch, e).
   Publisher: Live store (buffered); full fence; if epoch & 1: compare-and-swap to the next even; wake.

   Pan-compile: -DNOREDUCE
   Pan-run: -E

   Switches: each default is the protocol; another value is a mutant. */

#ifndef FENCE        /* rule 16: full fence between the Live store and reading the waiters' bit */
#define FENCE 1
#endif
#ifndef RECHECK      /* rule 16: the waiter reads the page again after setting the bit */
#define RECHECK 1
#endif
#ifndef SLEEP_ON_SET /* rule 16: the waiter sleeps on the value that it set (0: on whatever is there) */
#define SLEEP_ON_SET 1
#endif
#ifndef REAP_WAKE    /* rule 14: the reaper bumps and wakes */
#define REAP_WAKE 1
#endif
#ifndef REAP_BUMP    /* rule 14: the reaper's wake also changes the word (0: it only wakes) */
#define REAP_BUMP 1
#endif
#define PENDING 2
#define LIVE 3
hidden byte claim_left_asleep;
byte st = PENDING, epoch = 0;
bool asleep = false, wait_done = false, alive = true, pub_done = false, reaped = false;
bool buffered = false;                                     /* the Live store waits in the buffer */

active proctype Pub() provided (alive) { byte e;
  buffered = true;
#if FENCE
  !buffered;
#endif
  e = epoch;
  if :: e & 1 -> atomic { if :: epoch == e -> epoch = e + 1 :: else fi }; asleep = false
     :: else fi;
  pub_done = true }
active proctype Drain() {
  do :: atomic { buffered -> st = LIVE; buffered = false }
     :: atomic { wait_done && !buffered && (pub_done || reaped) -> break } od }
active proctype Wait() { byte e;
  do
  :: if :: st != PENDING -> break :: else fi;
     atomic { epoch = epoch | 1; e = epoch };
#if RECHECK
     if :: st != PENDING -> break :: else fi;
#endif
     atomic { if :: epoch == e || !SLEEP_ON_SET -> asleep = true :: else fi };
     !asleep
  od; wait_done = true }
active proctype Kill() { if :: !pub_done -> alive = false :: true fi }
active proctype Reap() {
  if
  :: atomic { !alive && !buffered -> skip };               /* the kernel reports after the stores are out */
     atomic { if :: st == PENDING -> st = 0 :: else fi };
#if REAP_BUMP
     epoch = (epoch | 1) + 1;
#endif
#if REAP_WAKE
     asleep = false;
#endif
     reaped = true
  :: pub_done && alive -> skip
  fi }
active proctype Check() { timeout -> assert(wait_done || claim_left_asleep) }
