import sys
from simulation.schedule import play
if __name__ == "__main__":
    import time
    a,b=map(int,sys.argv[1].split("-")) if "-" in sys.argv[1] else (int(sys.argv[1]),)*2
    for seed in range(a,b+1):
        t=time.perf_counter()
        o=play(seed)
        if "-t" in sys.argv: print("\n".join(o.trace))
        print(seed, round(time.perf_counter()-t,2), len(o.trace), o.counts["batches"], [str(v) for v in o.violations], flush=True)
